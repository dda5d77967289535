"""Which weights are pruned at which level: exact joint ranks of all layers, without a sort.

The weights of a stage's layers are ranked together by ascending

    (normalised score, |weight|, layer, row-major index)      normalised = (score - offset) * scale

and level t prunes the counts[t] lowest (Andrade & Konkle 2025, "Circuit extraction": global
magnitude pruning of the scores).  The levels are nested, so one byte a weight holds them all: the
number of levels that keep it, counted from the densest.  A weight is kept at level t iff its byte
is greater than t.

Ties matter: with a few scoring images most scores are exactly 0.  Smaller |weight| goes first, then
the earlier index; -0.0 equals 0.0.  The arithmetic is float32 in a fixed order without fused
multiply-adds, so that equal inputs give equal bytes on every device.

The reference sorts.  The fast paths (`levels_cpu`, `levels_triton`) select: (score, |weight|) is a
64-bit key, and four histograms of 16-bit digits find the key at which every level cuts, reading a
factored layer's scores from its factors each time and never storing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.score_linear import Form, score_from_factors

if TYPE_CHECKING:
    from circuitcore.kernels.levels_trie import Passes

MAX_LEVELS = 255
Ties = Literal["weight", "snap"]


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One layer's scores: given (``values``) or as factors (``left``, ``right``, ``form``).

    weight: any shape, seen as [R, C] with R its first dimension.  values: as many scores as
    weights, in the same order.  left [N, R], right [N, C]: scores = f(weight, left^T right), see
    `score_linear.linear_factors`.  All are used as float32.
    """

    weight: torch.Tensor
    values: torch.Tensor | None = None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    form: Form = "abs"
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.values is not None:
            if self.left is not None or self.right is not None:
                raise ValueError("give values, or left and right, not both")
            if self.values.numel() != self.weight.numel():
                raise ValueError(
                    f"values {tuple(self.values.shape)} for weight {tuple(self.weight.shape)}"
                )
            return
        if self.left is None or self.right is None:
            raise ValueError("give values, or both left and right")
        rows = self.weight.shape[0] if self.weight.ndim else 1
        images, columns = self.right.shape
        if tuple(self.left.shape) != (images, rows) or rows * columns != self.weight.numel():
            raise ValueError(
                f"left {tuple(self.left.shape)} and right {tuple(self.right.shape)} for weight "
                f"{tuple(self.weight.shape)}: [N, R] and [N, C] expected"
            )
        if self.form not in ("abs", "signed", "set"):
            raise ValueError(f"form={self.form!r}: abs, signed or set")


@dataclass(frozen=True, eq=False)
class Assignment:
    """levels: a uint8 tensor like each weight; counts: weights pruned at each level, as reached;
    zero: raw scores that are exactly 0, one number a layer."""

    levels: list[torch.Tensor]
    counts: tuple[int, ...]
    zero: tuple[int, ...]


def score_range(layer: LayerScores, *, impl: str = "auto") -> tuple[float, float, float]:
    """Smallest and largest raw score and the sum of their absolute values (float64 sum).

    Raises ValueError if a score is NaN or infinite, or the layer is empty.
    """
    if layer.weight.numel() == 0:
        raise ValueError("a layer without weights has no score range")
    chosen = choose(impl, layer.weight, cpu="numba")
    if chosen == "numba":
        from circuitcore.kernels import levels_cpu

        low, high, total = levels_cpu.score_range(layer)
    elif chosen == "triton":
        from circuitcore.kernels import levels_triton

        low, high, total = levels_triton.score_range(layer)
    else:
        low, high, total = _range_torch(layer)
    if not np.isfinite([low, high, total]).all():
        raise ValueError("scores are not finite")
    return low, high, total


def assign_levels(
    layers: Sequence[LayerScores],
    counts: Sequence[int],
    *,
    ties: str = "weight",
    impl: str = "auto",
) -> Assignment:
    """Rank all layers' weights jointly and write each one's level byte.

    counts[t] is how many weights level t prunes, ascending (repeats allowed), at most 255 of them.
    ``ties="snap"`` moves a level that would cut among equal scores up to the next distinct one.
    Raises ValueError for counts that are not ascending or exceed the weights, more than 255
    levels, an unknown ``ties``, or a normalised score that is NaN or infinite.
    """
    check_counts(counts, sum(layer.weight.numel() for layer in layers))
    if ties not in ("weight", "snap"):
        raise ValueError(f"ties={ties!r}: weight or snap")
    if not layers:
        return Assignment([], tuple(int(count) for count in counts), ())
    chosen = choose(impl, layers[0].weight, cpu="numba")
    if chosen == "torch":
        return assign_levels_reference(layers, counts, ties=ties)
    from circuitcore.kernels.levels_trie import select

    passes = _passes(chosen, layers)
    levels, reached = select(passes, counts, ties)
    return Assignment(levels, reached, passes.zero)


def assign_levels_reference(
    layers: Sequence[LayerScores], counts: Sequence[int], *, ties: str = "weight"
) -> Assignment:
    """The definition: two stable sorts, |weight| then score, and the rank against the counts."""
    raw = [raw_scores(layer) for layer in layers]
    keys = torch.cat([normalised(s, layer) for s, layer in zip(raw, layers, strict=True)])
    if not bool(torch.isfinite(keys).all()):
        raise ValueError("scores are not finite")
    magnitudes = torch.cat([layer.weight.detach().float().abs().flatten() for layer in layers])
    order = torch.argsort(magnitudes, stable=True)
    order = order[torch.argsort(keys[order], stable=True)]
    cuts = torch.tensor([int(count) for count in counts], dtype=torch.int64, device=keys.device)
    if ties == "snap" and cuts.numel():
        ascending = keys[order]
        last = ascending[(cuts - 1).clamp(min=0)]
        cuts = torch.where(cuts > 0, torch.searchsorted(ascending, last, right=True), cuts)
    position = torch.arange(keys.numel(), device=keys.device)
    level = torch.empty(keys.numel(), dtype=torch.uint8, device=keys.device)
    level[order] = torch.searchsorted(cuts, position, right=True).to(torch.uint8)
    parts = level.split([layer.weight.numel() for layer in layers])
    return Assignment(
        [part.view(layer.weight.shape) for part, layer in zip(parts, layers, strict=True)],
        tuple(int(cut) for cut in cuts),
        tuple(int((s == 0).sum()) for s in raw),
    )


def assign_unit_levels(
    scores: torch.Tensor,
    ties_key: torch.Tensor,
    sizes: torch.Tensor,
    targets: Sequence[int],
    *,
    ties: str = "weight",
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Levels of units coarser than a weight (kernels, filters), ranked by (score, ties_key, index).

    scores, ties_key (sum of |w|), sizes (weights a unit holds): [U].  targets[t]: how many
    *weights* level t should prune; it prunes the whole number of units that comes nearest (the
    smaller one if two are equally near).  Returns unit levels uint8 [U] and the weights pruned.
    Raises ValueError as `assign_levels` does.
    """
    check_counts(targets, int(sizes.sum()) if sizes.numel() else 0)
    keys = scores.detach().float().cpu().numpy() + np.float32(0.0)
    if not np.isfinite(keys).all():
        raise ValueError("scores are not finite")
    order = np.lexsort((ties_key.detach().float().cpu().numpy(), keys))
    reached = np.concatenate([[0], np.cumsum(sizes.cpu().numpy().astype(np.int64)[order])])
    wanted = np.asarray([int(target) for target in targets], dtype=np.int64)
    above = np.searchsorted(reached, wanted).clip(max=len(order))
    below = (above - 1).clip(min=0)
    cuts = np.where(wanted - reached[below] <= reached[above] - wanted, below, above)
    if ties == "snap" and len(order):
        ascending = keys[order]
        last = ascending[(cuts - 1).clip(min=0)]
        cuts = np.where(cuts > 0, np.searchsorted(ascending, last, side="right"), cuts)
    elif ties not in ("weight", "snap"):
        raise ValueError(f"ties={ties!r}: weight or snap")
    level = np.empty(len(order), dtype=np.uint8)
    level[order] = np.searchsorted(cuts, np.arange(len(order)), side="right")
    return (
        torch.from_numpy(level).to(scores.device),
        tuple(int(reached[cut]) for cut in cuts),
    )


def check_counts(counts: Sequence[int], total: int) -> None:
    """Raise ValueError unless counts are at most 255 ascending numbers from 0 to ``total``."""
    if len(counts) > MAX_LEVELS:
        raise ValueError(f"{len(counts)} levels: at most {MAX_LEVELS} fit a byte")
    numbers = [int(count) for count in counts]
    if numbers != sorted(numbers):
        raise ValueError("counts must ascend, from the densest level to the sparsest")
    if numbers and (numbers[0] < 0 or numbers[-1] > total):
        raise ValueError(f"counts must lie between 0 and the {total} weights there are")


def raw_scores(layer: LayerScores) -> torch.Tensor:
    """The layer's scores, float32, flat."""
    if layer.values is not None:
        return layer.values.detach().float().flatten()
    assert layer.left is not None and layer.right is not None
    weight = layer.weight.detach().float().reshape(layer.left.shape[1], -1)
    left, right = layer.left.detach().float(), layer.right.detach().float()
    return score_from_factors(weight, left, right, layer.form).flatten()


def normalised(raw: torch.Tensor, layer: LayerScores) -> torch.Tensor:
    """(raw - offset) * scale, each step rounded to float32; -0.0 becomes 0.0."""
    offset = torch.tensor(layer.offset, dtype=torch.float32, device=raw.device)
    scale = torch.tensor(layer.scale, dtype=torch.float32, device=raw.device)
    return (raw - offset) * scale + 0.0


def _passes(chosen: str, layers: Sequence[LayerScores]) -> Passes:
    if chosen == "triton":
        from circuitcore.kernels import levels_triton

        return levels_triton.Passes(layers)
    from circuitcore.kernels import levels_cpu

    return levels_cpu.Passes(list(layers))


def _range_torch(layer: LayerScores) -> tuple[float, float, float]:
    raw = raw_scores(layer)
    low, high = raw.aminmax()  # NaN propagates
    return float(low), float(high), float(raw.abs().sum(dtype=torch.float64))
