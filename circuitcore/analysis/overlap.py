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
from circuitcore.kernels.overlap.operation import BLOCK_BYTES, overlap_blocks
from circuitcore.progress import Progress, Silent
from circuitcore.records import Found, Overlap
from circuitcore.runs.circuitfile import checked_key, read_shapes, stored_mask
from circuitcore.runs.folder import AGAIN, RunFolder
from circuitcore.runs.tables import OF, read_table, write_table
from circuitcore.runs.working.unfinished import Unfinished, forget

FILE = "overlap.parquet"
NOBODY = Silent()


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
    run: RunFolder, records: Sequence[Found], progress: Progress, kept: Unfinished | None
) -> tuple[list[str], dict[str, LayerOverlap]]:
    """Names of the circuits and pairwise counts by layer; masks are read once, in blocks.

    On the device the run was made on, where it is there, else on the CPU.  ``kept``: where counts
    of masks of more than one block are kept block by block, so that a kill loses one.
    """
    found = [record for record in records if record.circuit is not None]
    files = [run.path(record.index) for record in found]
    names = [record.category for record in found]
    device = device_of(run)
    impl = run.options().impl if device != "cpu" else "auto"
    if not files:
        return [], {}
    sizes = [path.stat().st_size if path.exists() else 0 for path in files]  # else refused below
    ends = np.cumsum(sizes) // 1_000_000
    progress.start("overlap of all pairs, MB read", 2 * int(ends[-1]))  # to check, then to count
    for path, name, count in zip(files, names, np.diff(ends, prepend=0), strict=True):
        try:
            checked_key(path)  # what is mapped below is not checked again
        except InputError as error:
            raise InputError(f"{error}; {AGAIN}") from None
        progress.advance(int(count), name)
    shapes = read_shapes(files[0])
    last = run.manifest["model"]["last"]  # a direction's is no layer that is pruned
    masks = {name: [stored_mask(path, name) for path in files] for name in shapes}
    total = sum(len(mask) for of_layer in masks.values() for mask in of_layer)
    if total <= BLOCK_BYTES:
        kept, progress = None, NOBODY
    layers = {}
    for number, (name, shape) in enumerate(shapes.items()):
        sums = _intersections(masks[name], number, kept, progress, device, impl)
        layers[name] = counted(sums, int(np.prod(shape, dtype=np.int64)), name == last)
    return names, layers


def _intersections(
    masks: Sequence[Any],
    layer: int,
    kept: Unfinished | None,
    progress: Progress,
    device: str,
    impl: str,
) -> np.ndarray:
    """int64 [K, K] of one layer's packed masks, going on from what was ``kept`` of it."""
    begin, total = 0, np.zeros((len(masks), len(masks)), np.int64)
    if kept is not None:
        begin, total = kept.found(layer) or (begin, total)
    progress.advance(begin * len(masks) // 1_000_000)
    at = begin
    for end, counts in overlap_blocks(
        masks, begin=begin, memory=BLOCK_BYTES, device=device, impl=impl
    ):
        total += counts.numpy()
        if kept is not None:
            kept.keep(layer, end, total)
        progress.advance((end - at) * len(masks) // 1_000_000)
        at = end
    return total


def counted(intersection: np.ndarray, relevant: int, last: bool) -> LayerOverlap:
    """Pairwise counts of one layer from its masks' intersections, int64 [K, K]."""
    kept = np.diag(intersection).copy()
    return LayerOverlap(np.diag(kept) if last else intersection, kept, relevant, last)


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


def table(run: RunFolder, records: Sequence[Found], progress: Progress = NOBODY) -> pa.Table:
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


def pairs(run: RunFolder, records: Sequence[Found], progress: Progress = NOBODY) -> pa.Table:
    """`pairs_table`, written to the run folder."""
    found = pairs_table(run, records, progress, Unfinished(run.folder, run.contents()))
    write_table(run.folder / FILE, found)
    forget(run.folder)
    return found


def pairs_table(
    run: RunFolder,
    records: Sequence[Found],
    progress: Progress = NOBODY,
    kept: Unfinished | None = None,
) -> pa.Table:
    """One row a pair and layer (``layer`` empty: the whole network).

    ``records``: those of the run; ``kept``: as `layer_overlaps` takes it.
    Raises InputError where a circuit's file is damaged.
    """
    names, layers = layer_overlaps(run, records, progress, kept)
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
