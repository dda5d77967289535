"""Overlap of circuits: |A and B| / |A or B| over relevant weights, all pairs, beside chance.

In the last layer two categories use two different rows: nothing is shared there and both rows
count in the union.  The chance level is that of independent masks of the same densities layer by
layer; whole-network densities would understate it where layers differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import torch

from circuitcore.kernels.overlap.operation import overlap_counts_mapped
from circuitcore.records import Overlap
from circuitcore.runs.circuitfile import mapped_mask, read_record, read_shapes
from circuitcore.runs.folder import Run
from circuitcore.runs.tables import write_table

FILE = "overlap.parquet"


@dataclass(frozen=True)
class LayerOverlap:
    """Pairwise counts of one layer over K circuits.

    ``intersection`` int64 [K, K]; ``kept`` int64 [K]; ``relevant`` weights in the layer; in the
    ``last`` layer intersections of different circuits are 0.
    """

    intersection: np.ndarray
    kept: np.ndarray
    relevant: int
    last: bool

    @property
    def union(self) -> np.ndarray:
        """int64 [K, K]."""
        return self.kept[:, None] + self.kept[None, :] - self.intersection

    @property
    def chance(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected intersection and union of independent masks, float64 [K, K] each."""
        p = self.kept / self.relevant
        both = np.zeros((len(p), len(p))) if self.last else np.outer(p, p)
        return self.relevant * both, self.relevant * (p[:, None] + p[None, :] - both)


def layer_overlaps(run: Run) -> tuple[list[str], dict[str, LayerOverlap]]:
    """Names of the circuits and pairwise counts by layer; masks are read once, in blocks.

    On the device the run was made on, where it is there, else on the CPU.
    """
    records = [(path, read_record(path)[1]) for path in run.units().values()]
    files = [path for path, record in records if record.circuit is not None]
    names = [record.category for _, record in records if record.circuit is not None]
    device = "cuda" if run.manifest["device"] != "cpu" and torch.cuda.is_available() else "cpu"
    if not files:
        return [], {}
    shapes = read_shapes(files[0])
    last = next(n for n in reversed(shapes) if n == run.manifest["model"]["last"])
    found = {}
    for name, shape in shapes.items():
        masks = [mapped_mask(path, name) for path in files]
        intersection, kept = (t.numpy() for t in overlap_counts_mapped(masks, device=device))
        if name == last:
            intersection = np.diag(np.diag(intersection))
        relevant = int(np.prod(shape, dtype=np.int64))
        found[name] = LayerOverlap(intersection, kept, relevant, name == last)
    return names, found


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def jaccard(layers: Mapping[str, LayerOverlap]) -> tuple[np.ndarray, np.ndarray]:
    """Overlap and its chance level over the given layers together, float64 [K, K] each."""
    both = np.sum([layer.intersection for layer in layers.values()], axis=0)
    either = np.sum([layer.union for layer in layers.values()], axis=0)
    expected = [layer.chance for layer in layers.values()]
    chance = _ratio(np.sum([e[0] for e in expected], axis=0), np.sum([e[1] for e in expected], 0))
    return _ratio(both, either), chance


def matrix(run: Run) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, overlap and chance level of the whole network, float64 [K, K], 1 on the diagonal.

    From ``overlap.parquet`` where it is of the circuits there are now; else that is made anew.
    """
    table = None
    if (run.folder / FILE).exists():
        table = pyarrow.parquet.read_table(run.folder / FILE)
        if (table.schema.metadata or {}).get(b"circuits") != _circuits(run):
            table = None
    table = pairs(run) if table is None else table
    names = json.loads(table.schema.metadata[b"names"])
    whole = table.filter(pc.equal(table["layer"], ""))
    both = []
    for column in ("overlap", "chance"):
        square = np.eye(len(names))
        square[np.triu_indices(len(names), k=1)] = whole[column].to_numpy()
        both.append(np.triu(square) + np.triu(square, k=1).T)
    return names, both[0], both[1]


def _circuits(run: Run) -> bytes:
    """Which finished categories a table of pairs is of."""
    return " ".join(path.stem for path in run.units().values()).encode()


def pairs(run: Run) -> pa.Table:
    """One row a pair and layer (``layer`` empty: the whole network); written to the run folder."""
    names, layers = layer_overlaps(run)
    first, second = np.triu_indices(len(names), k=1)
    tables = []
    for label in ["", *layers]:
        chosen = layers if label == "" else {label: layers[label]}
        if not chosen or not len(first):
            continue
        overlap, chance = jaccard(chosen)
        both = np.sum([v.intersection for v in chosen.values()], axis=0)
        either = np.sum([v.union for v in chosen.values()], axis=0)
        tables.append(
            pa.table(
                {
                    "a": [names[i] for i in first],
                    "b": [names[i] for i in second],
                    "layer": [label] * len(first),
                    "intersection": both[first, second],
                    "union": either[first, second],
                    "overlap": overlap[first, second],
                    "chance": chance[first, second],
                }
            )
        )
    schema = pa.schema(
        [("a", pa.string()), ("b", pa.string()), ("layer", pa.string())]
        + [("intersection", pa.int64()), ("union", pa.int64())]
        + [("overlap", pa.float64()), ("chance", pa.float64())]
    )
    table = pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()
    table = table.replace_schema_metadata({"names": json.dumps(names), "circuits": _circuits(run)})
    write_table(run.folder / FILE, table)
    return table


def summary(run: Run) -> Overlap:
    """Number of pairs, mean, smallest and largest overlap, and the mean chance level."""
    names, overlap, chance = matrix(run)
    upper = np.triu_indices(len(names), k=1)
    values = overlap[upper]
    some = bool(len(values))
    return Overlap(
        pairs=len(values),
        mean=float(values.mean()) if some else None,
        min=float(values.min()) if some else None,
        max=float(values.max()) if some else None,
        mean_chance=float(chance[upper].mean()) if some else None,
        file=FILE,
    )
