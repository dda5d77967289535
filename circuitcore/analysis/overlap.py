"""Overlap of circuits: |A and B| / |A or B| over relevant weights, all pairs, beside chance.

In the last layer two categories use two different rows: nothing is shared there and both rows
count in the union.  The chance level is that of independent masks of the same densities layer by
layer; whole-network densities would understate it where layers differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from circuitcore.errors import InputError
from circuitcore.kernels.overlap.operation import overlap_counts_mapped
from circuitcore.progress import Progress, Silent
from circuitcore.records import Found, Overlap
from circuitcore.runs.circuitfile import checked_key, read_shapes, stored_mask
from circuitcore.runs.folder import AGAIN, RunFolder
from circuitcore.runs.tables import OF, read_table, write_table

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


def layer_overlaps(
    run: RunFolder, records: Sequence[Found], progress: Progress | None = None
) -> tuple[list[str], dict[str, LayerOverlap]]:
    """Names of the circuits and pairwise counts by layer; masks are read once, in blocks.

    On the device the run was made on, where it is there, else on the CPU.
    """
    found = [record for record in records if record.circuit is not None]
    files = [run.path(record.index) for record in found]
    names = [record.category for record in found]
    device = device_of(run)
    impl = run.options().impl if device != "cpu" else "auto"
    if not files:
        return [], {}
    shown = progress or Silent()
    shown.start("reading circuits", len(files))
    for path, name in zip(files, names, strict=True):
        try:
            checked_key(path)  # what is mapped below is not checked again
        except InputError as error:
            raise InputError(f"{error}; {AGAIN}") from None
        shown.advance(1, name)
    shapes = read_shapes(files[0])
    last = run.manifest["model"]["last"]  # a direction's is no layer that is pruned
    layers = {}
    shown.start("overlap by layer", len(shapes))
    for name, shape in shapes.items():
        shown.advance(0, name)
        masks = [stored_mask(path, name) for path in files]
        relevant = int(np.prod(shape, dtype=np.int64))
        layers[name] = counted(masks, relevant, name == last, device=device, impl=impl)
        shown.advance()
    return names, layers


def counted(
    masks: Sequence[Any], relevant: int, last: bool, device: str = "cpu", impl: str = "auto"
) -> LayerOverlap:
    """Pairwise counts of one layer's packed ``masks``."""
    intersection, kept = (
        each.numpy() for each in overlap_counts_mapped(masks, device=device, impl=impl)
    )
    if last:
        intersection = np.diag(np.diag(intersection))
    return LayerOverlap(intersection, kept, relevant, last)


def device_of(run: RunFolder) -> str:
    """The device of the run, or another GPU where that one is not here; the CPU where none is."""
    if run.manifest["device"] == "cpu" or not torch.cuda.is_available():
        return "cpu"
    index = torch.device(run.manifest["device"]).index or 0
    return f"cuda:{index if index < torch.cuda.device_count() else 0}"


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def jaccard(layers: Mapping[str, LayerOverlap]) -> tuple[np.ndarray, np.ndarray]:
    """Overlap and its chance level over the given layers together, float64 [K, K] each."""
    both = np.sum([layer.intersection for layer in layers.values()], axis=0)
    either = np.sum([layer.union for layer in layers.values()], axis=0)
    expected = [layer.chance for layer in layers.values()]
    chance = _ratio(np.sum([e[0] for e in expected], axis=0), np.sum([e[1] for e in expected], 0))
    return _ratio(both, either), chance


def table(run: RunFolder, records: Sequence[Found], progress: Progress | None = None) -> pa.Table:
    """`pairs` as ``overlap.parquet`` holds them where that is of these circuits, else made anew."""
    if (run.folder / FILE).exists():
        with suppress(InputError):  # damaged: made anew
            found = read_table(run.folder / FILE)
            if (found.schema.metadata or {}).get(OF) == run.contents().encode():
                return found
    return pairs(run, records, progress)


def matrix(pairs: pa.Table, layer: str = "") -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, overlap and chance level of a layer (``""``: the whole network) from a `table`.

    float64 [K, K], 1 on the diagonal.
    """
    names = json.loads(pairs.schema.metadata[b"names"])
    whole = pairs.filter(pc.equal(pairs["layer"], layer))
    both = []
    for column in ("overlap", "chance"):
        square = np.eye(len(names))
        square[np.triu_indices(len(names), k=1)] = whole[column].to_numpy()
        both.append(np.triu(square) + np.triu(square, k=1).T)
    return names, both[0], both[1]


def pairs(run: RunFolder, records: Sequence[Found], progress: Progress | None = None) -> pa.Table:
    """`pairs_table`, written to the run folder."""
    found = pairs_table(run, records, progress)
    write_table(run.folder / FILE, found)
    return found


def pairs_table(
    run: RunFolder, records: Sequence[Found], progress: Progress | None = None
) -> pa.Table:
    """One row a pair and layer (``layer`` empty: the whole network).

    ``records``: those of the run.  Raises InputError where a circuit's file is damaged.
    """
    names, layers = layer_overlaps(run, records, progress)
    first, second = np.triu_indices(len(names), k=1)
    tables = []
    # half a million pairs of a thousand circuits, in every layer: the names are held once
    a, b = (pa.array(names, pa.string()).take(pa.array(side)) for side in (first, second))
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
                    "a": a,
                    "b": b,
                    "layer": pa.repeat(label, len(first)),
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
    found = pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()
    told = {"names": json.dumps(names), OF: run.contents()}
    return found.replace_schema_metadata(told)


def summary(pairs: pa.Table) -> Overlap:
    """Number of pairs of a `table`, mean, smallest and largest overlap, mean chance level."""
    names, overlap, chance = matrix(pairs)
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
