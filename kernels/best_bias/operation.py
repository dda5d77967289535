"""The exact bias of a circuit: the b that makes circuit substitution accuracy (CSA) greatest.

Image n is predicted as the category iff a_n + b > m_n, so everything turns on the *steps*
d_n = m_n - a_n (float64), and with P target images and Q others

    hits(b)   = #{n target : d_n < b}        F(b) = #{n other : d_n < b}
    CSA(b)    = hits/P - F/norm              norm = P | Q | hits + F

is constant on the half-open intervals (lo, hi] between neighbouring distinct steps
(Andrade & Konkle 2025, Circuit substitution accuracy; the free bias parameter).

A *matched* bias takes the shift of activations out and nothing else: of the biases with
F(b) <= F0 (``most_alarms``) one with the most hits.  Admissible are b <= e, e the (F0 + 1)-th
smallest step of the other images, so hits are those of the target steps below e.

`best_bias_reference` sorts all steps and scans, O(N log N).  The CPU path needs no sort of the
others: CSA rises only at a target image's step, so the best interval starts at one of at most P
distinct target steps, and one pass with a binary search, O(N log P), finds the false alarms and
the upper end of each; of a matched bias no step above e matters (`matched_row`).  There is no
Triton kernel on purpose: all levels of a sweep are one batched `torch.sort` of L x N numbers
(32 x 20,000 float64 = 5 MB) against L forward passes over N images, so on a GPU the reference is
the implementation.
"""

from __future__ import annotations

from numbers import Integral

import torch

from circuitcore.kernels.best_bias.matched import matched_row
from circuitcore.kernels.best_bias.reference import (
    NORMS,
    BestBias,
    best_bias_reference,
    csa,
    inside,
)
from circuitcore.kernels.dispatch import choose


def best_bias(
    activation: torch.Tensor,
    margin_max: torch.Tensor,
    is_target: torch.Tensor,
    *,
    norm: str = "target",
    most_alarms: int | None = None,
    impl: str = "auto",
) -> BestBias:
    """The bias that maximises CSA, exactly, for each row (a level, or a category) at once.

    With ``most_alarms`` the matched one: it maximises hits among those of no more false alarms.

    ``activation`` [L, N] (or [N], taken as one row): the target unit's activation a_n in the
    pruned network, any float dtype.  ``margin_max`` m_n = max over k != c of the unpruned
    logits, and ``is_target`` bool, both [N], or [L, N] where the rows are different categories.
    ``norm`` divides false alarms by the number of target images, of other images, or of all
    predictions.  All arithmetic is float64; CSA is one correctly rounded division of exact
    integers (N < 2**26), so equal accuracies are equal floats.

    Among the maximising intervals (lo, hi] the nearest to 0 is taken (of two equally near, the
    lower): b = 0 if it lies inside, else the midpoint, or lo + 1 where hi is infinite.  Where
    the best CSA is <= 0 (matched: where there is no hit), no image is said to be the category:
    CSA 0, b = min(0, the smallest step).

    Raises ValueError for shapes that do not fit, a row without a target image, a non-finite
    step, an unknown ``norm`` or a negative ``most_alarms``.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: one of {', '.join(NORMS)}")
    if activation.ndim == 1:
        activation = activation[None]
    if activation.ndim != 2:
        raise ValueError(f"activation must be [L, N], got {list(activation.shape)}")
    for name, value in (("margin_max", margin_max), ("is_target", is_target)):
        if value.shape not in (activation.shape, activation.shape[1:]):
            raise ValueError(
                f"{name} {list(value.shape)} does not fit activation {list(activation.shape)}"
            )
    if is_target.dtype != torch.bool:
        raise ValueError(f"is_target must be bool, got {is_target.dtype}")
    if most_alarms is not None:
        if not isinstance(most_alarms, Integral) or most_alarms < 0:
            raise ValueError(f"most_alarms={most_alarms}: a whole number, 0 or more")
        most_alarms = int(most_alarms)
    chosen = choose(impl, activation, cpu="numba") == "numba"
    return BestBias(*_best_bias(activation, margin_max, is_target, norm, most_alarms, chosen))


@torch.library.custom_op("circuitcore::best_bias", mutates_args=())
def _best_bias(
    activation: torch.Tensor,
    margin_max: torch.Tensor,
    is_target: torch.Tensor,
    norm: str,
    most_alarms: int | None,
    by_candidates: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    steps = margin_max.double() - activation.double()
    is_target = is_target.expand(steps.shape)
    if not bool(torch.isfinite(steps).all()):
        raise ValueError("an activation or a margin is not finite")
    if not bool(is_target.any(dim=1).all()):
        raise ValueError("no target image: CSA is undefined")
    compute = _candidates if by_candidates else best_bias_reference
    return tuple(compute(steps, is_target, norm, most_alarms))  # type: ignore[return-value]


@_best_bias.register_fake
def _best_bias_fake(
    activation: torch.Tensor,
    margin_max: torch.Tensor,
    is_target: torch.Tensor,
    norm: str,
    most_alarms: int | None,
    by_candidates: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    row = activation.new_empty(activation.shape[0], dtype=torch.float64)
    count = activation.new_empty(activation.shape[0], dtype=torch.int64)
    other = torch.empty_like
    return row, count, other(count), other(row), other(row), other(row)


def _candidates(
    steps: torch.Tensor, is_target: torch.Tensor, norm: str, most_alarms: int | None
) -> BestBias:
    """The CPU path: one pass a row over the images, intervals only where they can be best."""
    rows = steps.contiguous().numpy(), is_target.contiguous().numpy()
    if most_alarms is None:
        from circuitcore.kernels.best_bias.cpu import scan_rows

        found = [torch.from_numpy(part) for part in scan_rows(*rows, NORMS.index(norm))]
    else:
        each = [
            matched_row(row[target], row[~target], most_alarms)
            for row, target in zip(*rows, strict=True)
        ]
        kinds = torch.float64, torch.float64, torch.int64, torch.int64, torch.float64
        found = [torch.tensor([row[k] for row in each], dtype=kind) for k, kind in enumerate(kinds)]
    lo, hi, hits, false_alarms, least = found
    totals = is_target.sum(1)
    others = is_target.shape[1] - totals
    accuracy = csa(hits, false_alarms, totals, others, norm)
    nothing = accuracy <= 0 if most_alarms is None else hits == 0
    bias = torch.where(nothing, least.clamp(max=0.0), inside(lo, hi))
    hits, false_alarms = (count.masked_fill(nothing, 0) for count in (hits, false_alarms))
    accuracy = csa(hits, false_alarms, totals, others, norm)
    lo = lo.masked_fill(nothing, -torch.inf)
    hi = torch.where(nothing, least, hi)
    return BestBias(bias, hits, false_alarms, accuracy, lo, hi)
