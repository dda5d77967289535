"""What the resampled circuits of a category come to: rows from counts and bit-packed masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.analysis.resampling.drawing import Drawing
from circuitcore.analysis.resampling.kept import WHOLE
from circuitcore.kernels.overlap.operation import overlap_counts_mapped

CORE, NEVER = 0.95, 0.05  # of the resamples


class ResampledRow(BaseModel):
    """One layer of one circuit, or all (``layer`` empty), over the resamples.

    ``relevant`` weights, of which the circuit keeps ``kept``; ``core``, ``contingent`` and
    ``never`` are parts of the relevant.  ``ceiling``: mean overlap of two resampled circuits, with
    the smallest and largest; ``chance``: that of independent masks of the circuit's densities;
    ``overlap``: mean overlap of a resampled circuit with the circuit.  ``majority``:
    weights that over half of the resamples keep; ``certified`` of them, ``circuit_certified`` of
    the circuit, with a chance of error of 1 % over all weights (``each_``: for each weight).
    ``threshold_ceiling``, ``extraction_ceiling``: of whole circuits, as `choice.ChoiceRow` has
    them.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    layer: str
    relevant: int
    kept: int
    core: float
    contingent: float
    never: float
    ceiling: float | None
    ceiling_min: float | None
    ceiling_max: float | None
    chance: float | None
    overlap: float | None
    majority: int
    certified: float | None
    circuit_certified: float | None
    each_certified: float | None
    each_circuit_certified: float | None
    threshold_ceiling: float | None = None
    extraction_ceiling: float | None = None


@dataclass(frozen=True)
class Counts:
    """Of a layer, or all: ``kept_by[c]``: weights that c of R resamples keep, ``inside`` those of
    the circuit; ``both`` int64 [R + 1, R + 1]: weights that two masks share, the circuit's last;
    ``chance``: intersection and union expected of two independent masks as dense as the circuit.
    """

    kept_by: np.ndarray
    inside: np.ndarray
    both: np.ndarray
    chance: np.ndarray

    @staticmethod
    def of(count: Tensor, circuit: Tensor, bits: np.ndarray, device: str) -> Counts:
        length = len(bits)
        kept_by = torch.bincount(count.view(-1), minlength=length).numpy()
        inside = torch.bincount(count[circuit], minlength=length).numpy()
        both = overlap_counts_mapped(list(bits), device=device)[0].numpy()
        p = inside.sum() / count.numel()
        return Counts(kept_by, inside, both, count.numel() * np.array([p * p, 2 * p - p * p]))

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.kept_by + other.kept_by, self.inside + other.inside,
            self.both + other.both, self.chance + other.chance,
        )  # fmt: skip


def rows_of(
    category: str, counts: Mapping[str, Tensor], circuit: Mapping[str, Tensor],
    bits: Mapping[str, np.ndarray], drawing: Drawing, device: str = "cpu",
) -> list[ResampledRow]:  # fmt: skip
    """The row of all layers, then theirs, from counts and masks.

    ``device``: on which pairs are counted.
    """
    relevant = sum(count.numel() for count in counts.values())
    least = drawing.least(relevant)
    parts = {
        name: Counts.of(count, circuit[name], bits[name], device) for name, count in counts.items()
    }
    whole = reduce(add, parts.values())
    return [row_of(category, name, each, least) for name, each in {WHOLE: whole, **parts}.items()]


def row_of(
    category: str, layer: str, counts: Counts, least: tuple[int | None, int | None]
) -> ResampledRow:
    """``least``: fewest resamples that certify a weight, over all weights and each alone."""
    kept_by, inside = counts.kept_by, counts.inside
    resamples, relevant, kept = len(kept_by) - 1, int(kept_by.sum()), int(inside.sum())
    share = np.arange(resamples + 1) / resamples
    sizes = np.diag(counts.both)
    union = sizes[:, None] + sizes[None, :] - counts.both
    overlaps = np.divide(counts.both, union, out=np.full(union.shape, np.nan), where=union > 0)
    pairs = overlaps[:-1, :-1][np.triu_indices(resamples, k=1)]
    pairs, own = pairs[np.isfinite(pairs)], overlaps[-1, :-1][np.isfinite(overlaps[-1, :-1])]
    majority = int(kept_by[share > 0.5].sum())
    expected, either = counts.chance

    def certified(counted: np.ndarray, of: int, count: int | None) -> float | None:
        return None if count is None or not of else float(counted[count:].sum() / of)

    return ResampledRow(
        category=category,
        layer=layer,
        relevant=relevant,
        kept=kept,
        core=float(kept_by[share >= CORE].sum() / relevant),
        contingent=float(kept_by[(share > NEVER) & (share < CORE)].sum() / relevant),
        never=float(kept_by[share <= NEVER].sum() / relevant),
        ceiling=float(pairs.mean()) if len(pairs) else None,
        ceiling_min=float(pairs.min()) if len(pairs) else None,
        ceiling_max=float(pairs.max()) if len(pairs) else None,
        chance=float(expected / either) if either else None,
        overlap=float(own.mean()) if len(own) else None,
        majority=majority,
        certified=certified(kept_by, majority, least[0]),
        circuit_certified=certified(inside, kept, least[0]),
        each_certified=certified(kept_by, majority, least[1]),
        each_circuit_certified=certified(inside, kept, least[1]),
    )
