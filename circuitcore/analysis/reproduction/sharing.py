"""Overlap of every reading's circuits: each two chosen levels are intersected once for all.

|A and B| / |A or B| over relevant weights, with the chance level of independent masks of the same
densities layer by layer, as `analysis.overlap` has them of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuitcore.analysis.overlap import LayerOverlap, counted, jaccard
from circuitcore.analysis.reproduction.kept import FamilyRecord
from circuitcore.kernels.overlap.operation import overlap_counts_mapped
from circuitcore.records import Record
from circuitcore.runs.families import mask_bits, mask_shapes


class Shared(Record):
    """Overlap of two circuits over all pairs of ``categories`` of them; ``chance`` its mean."""

    categories: int
    mean: float
    min: float
    max: float
    chance: float


@dataclass(frozen=True)
class Sharing:
    """Counts of one layer over R chosen masks: ``place`` of (file, stage's level) among them."""

    counts: LayerOverlap
    place: Mapping[tuple[int, int], int]
    stage: int


def sharing(
    files: Sequence[tuple[Path, FamilyRecord]], stages: Sequence[str], last: str
) -> dict[str, Sharing]:
    """Pairwise counts by layer of all masks that files of one family hold.

    ``last``: the layer in which two categories use two rows.  Cost: R (R + 1) / 2 intersections of
    a bit a weight, R masks of memory a layer at a time.
    """
    rows: dict[str, list[tuple[int, int, str]]] = {}
    sizes: dict[str, int] = {}
    for number, (path, _) in enumerate(files):
        for name, shape in mask_shapes(path).items():
            stage, t, layer = name.split("/", 2)
            rows.setdefault(f"{stage}/{layer}", []).append((number, int(t), name))
            sizes[f"{stage}/{layer}"] = int(np.prod(shape, dtype=np.int64))
    found = {}
    for key, masks in rows.items():
        stage, layer = key.split("/", 1)
        bits = [mask_bits(files[number][0], name) for number, _, name in masks]
        place = {(number, t): row for row, (number, t, _) in enumerate(masks)}
        counts = counted(overlap_counts_mapped(bits)[0].numpy(), sizes[key], layer == last)
        found[layer] = Sharing(counts, place, stages.index(stage))
    return found


def shared(
    layers: Mapping[str, Sharing], files: Sequence[tuple[Path, FamilyRecord]], reading: int
) -> Shared | None:
    """Overlap of the circuits of one reading; None for fewer than two."""
    numbers = [n for n, (_, record) in enumerate(files) if record.readings[reading].levels]
    if len(numbers) < 2:
        return None
    chosen = {}
    for layer, own in layers.items():
        at = [own.place[n, files[n][1].readings[reading].levels[own.stage]] for n in numbers]
        counts = own.counts
        chosen[layer] = LayerOverlap(
            counts.intersection[np.ix_(at, at)], counts.kept[at], counts.relevant, counts.last
        )
    overlap, chance = jaccard(chosen)
    pairs = np.triu_indices(len(numbers), k=1)
    values = overlap[pairs]
    return Shared(
        categories=len(numbers), mean=float(values.mean()), min=float(values.min()),
        max=float(values.max()), chance=float(chance[pairs].mean()),
    )  # fmt: skip
