"""`best_bias` in plain torch: the specification of its fast versions, and what it answers with."""

from __future__ import annotations

from typing import NamedTuple

import torch

NORMS = ("target", "other", "predicted")


class BestBias(NamedTuple):
    """Per row: the bias and what it reaches on the images it was fitted on.

    ``bias`` float64 [L], in units of the logit; ``hits`` and ``false_alarms`` int64 [L], images;
    ``csa`` float64 [L]; ``lo``, ``hi`` float64 [L]: the half-open interval (lo, hi] that holds
    the bias, on which all of it is constant (lo may be -inf, hi +inf).
    """

    bias: torch.Tensor
    hits: torch.Tensor
    false_alarms: torch.Tensor
    csa: torch.Tensor
    lo: torch.Tensor
    hi: torch.Tensor


def csa(
    hits: torch.Tensor,
    false_alarms: torch.Tensor,
    targets: torch.Tensor,
    others: torch.Tensor,
    norm: str,
) -> torch.Tensor:
    """hits/P - F/norm, float64, as one division of exact integers; int64 tensors, broadcast.

    Where the divisor of false alarms is 0 (no other image, nothing predicted) F is 0 too, and
    what is left is hits/P.
    """
    hits, false_alarms, targets = hits.double(), false_alarms.double(), targets.double()
    if norm == "target":
        return (hits - false_alarms) / targets
    divisor = (others.double() if norm == "other" else hits + false_alarms).clamp(min=1)
    return (hits * divisor - false_alarms * targets) / (targets * divisor)


def csa_of(hits: int, false_alarms: int, targets: int, others: int, norm: str) -> float:
    """`csa` of one count each: the same division of the same integers, as a float."""
    if norm == "target":
        return (hits - false_alarms) / targets
    divisor = max(others if norm == "other" else hits + false_alarms, 1)
    return (hits * divisor - false_alarms * targets) / (targets * divisor)


def best_bias_reference(
    steps: torch.Tensor, is_target: torch.Tensor, norm: str, most_alarms: int | None = None
) -> BestBias:
    """Sort every row's steps and scan all N intervals: ``steps`` float64, ``is_target`` [L, N].

    ``most_alarms``: the most hits at no more false alarms than these, instead of the most CSA.
    """
    ordered, order = steps.sort(dim=1)
    target = is_target.gather(1, order)
    hits, false_alarms = target.cumsum(1), (~target).cumsum(1)  # with b just above each step
    upper = torch.nn.functional.pad(ordered[:, 1:], (0, 1), value=torch.inf)
    distinct = ordered < upper  # equal steps are one group: only its last entry is an interval
    total, rest = hits[:, -1:], false_alarms[:, -1:]
    if most_alarms is None:
        value = csa(hits, false_alarms, total, rest, norm)
    else:
        value = hits.double().masked_fill(false_alarms > most_alarms, 0.0)
    best = value.masked_fill(~distinct, -torch.inf).amax(1, keepdim=True)

    # distance of (lo, hi] from 0; the first of equally near ones
    away = torch.where(ordered >= 0, ordered, (-upper).clamp(min=0))
    away = away.masked_fill(~distinct | (value < best), torch.inf)
    column = torch.arange(steps.shape[1], device=steps.device)
    first = column.where(away == away.amin(1, keepdim=True), steps.shape[1]).amin(1, keepdim=True)

    nothing = best <= 0  # then the interval below all steps: no image is said to be the category
    first = first.masked_fill(nothing, -1)

    def pick(table: torch.Tensor, before: float) -> torch.Tensor:
        return torch.nn.functional.pad(table, (1, 0), value=before).gather(1, first + 1)[:, 0]

    lo, hi = pick(ordered, -torch.inf), pick(upper, float("nan"))
    hi = torch.where(first[:, 0] < 0, ordered[:, 0], hi)
    hit, alarm = pick(hits, 0), pick(false_alarms, 0)
    accuracy = csa(hit, alarm, total[:, 0], rest[:, 0], norm)
    bias = torch.where(nothing[:, 0], hi.clamp(max=0.0), inside(lo, hi))
    return BestBias(bias, hit, alarm, accuracy, lo, hi)


def inside(lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
    """The bias for (lo, hi]: 0 if it lies inside, else the midpoint, lo + 1 with no upper end.

    Rounding never leaves the interval: between neighbouring floats the midpoint becomes hi.
    """
    middle = torch.where(hi == torch.inf, lo + 1, 0.5 * lo + 0.5 * hi)
    after = torch.nextafter(lo, torch.full_like(lo, torch.inf))
    middle = torch.maximum(middle, after)
    return torch.where((lo < 0) & (hi >= 0), 0.0, middle)
