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

The reference sorts.  The fast paths (`cpu`, `gpu`) select: (score, |weight|) is a
64-bit key, and four histograms of 16-bit digits find the key at which every level cuts, reading a
factored layer's scores from its factors each time and never storing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.levels.layer import (
    Assignment,
    LayerScores,
    check_counts,
    raw_scores,
)
from circuitcore.kernels.levels.reference import assign_levels_reference


class NotFinite(ValueError):
    """A score is NaN or infinite."""


def score_range(layer: LayerScores, *, impl: str = "auto") -> tuple[float, float, float]:
    """Smallest and largest raw score and the sum of their absolute values (float64 sum).

    Raises ValueError if a score is NaN or infinite, or the layer is empty.
    """
    if layer.weight.numel() == 0:
        raise ValueError("a layer without weights has no score range")
    chosen = choose(impl, layer.weight, cpu="numba", operation="levels")
    if chosen == "numba":
        from circuitcore.kernels.levels import cpu as levels_cpu

        low, high, total = levels_cpu.score_range(layer)
    elif chosen == "triton":
        from circuitcore.kernels.levels import gpu as levels_triton

        low, high, total = levels_triton.score_range(layer).tolist()
    else:
        low, high, total = _range_torch(layer)
    if not np.isfinite([low, high, total]).all():
        raise NotFinite("scores are not finite")
    return low, high, total


def normalised_by(layer: LayerScores, how: str, *, impl: str = "auto") -> LayerScores:
    """The layer with the offset and scale of ``how``: ``minmax`` to [0, 1], ``l1`` or ``none``.

    Raises ValueError where a score is NaN or infinite; on a GPU nothing waits to see that, and
    `assign_levels` raises it.
    """
    if choose(impl, layer.weight, cpu="numba", operation="levels") == "triton":
        if how == "none":
            return layer
        from circuitcore.kernels.levels import gpu as levels_triton

        low, high, total = levels_triton.score_range(layer)
        span = high - low if how == "minmax" else total
        scale = torch.where(span > 0, 1 / span, 0.0)
        offset = low if how == "minmax" else torch.zeros_like(low)
        return replace(layer, norm=torch.stack([offset, scale]).float())
    smallest, largest, total_abs = score_range(layer, impl=impl)
    if how == "minmax":
        wide = largest > smallest
        return replace(layer, offset=smallest, scale=1 / (largest - smallest) if wide else 0.0)
    if how == "l1":
        return replace(layer, scale=1 / total_abs if total_abs > 0 else 0.0)
    return layer


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
    chosen = choose(impl, layers[0].weight, cpu="numba", operation="levels")
    if chosen == "torch":
        return assign_levels_reference(layers, counts, ties=ties)
    if chosen == "triton":
        from circuitcore.kernels.levels import gpu_select

        return Assignment(*gpu_select.select(layers, counts, ties))
    from circuitcore.kernels.levels import cpu as levels_cpu
    from circuitcore.kernels.levels.trie import select

    passes = levels_cpu.Passes(list(layers))
    levels, reached = select(passes, counts, ties)
    return Assignment(levels, reached, passes.zero)


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
        raise NotFinite("scores are not finite")
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


def _range_torch(layer: LayerScores) -> tuple[float, float, float]:
    raw = raw_scores(layer)
    low, high = raw.aminmax()  # NaN propagates
    return float(low), float(high), float(raw.abs().sum(dtype=torch.float64))
