"""Linear layers of a nested pruning sweep: many masks of one weight matrix in one call.

Andrade & Konkle 2025, Circuit extraction: a level of a sweep zeroes the weights whose score ranks
below its pruned fraction, and the network is run again.  Levels are nested, so one byte a weight
holds all of them: a weight is kept at level ``t`` iff its byte is greater than ``t``.

    out[t, n, o] = act( sum_i  W[o, i] [level[o, i] > t]  x[t, n, i]  +  b[o] )

The sum runs over the kept weights only.  A pruned weight takes no part in it, whatever it or the
input it would read holds: NaN and infinities never leak through a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.dispatch import choose

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]


def masked_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
    impl: str = "auto",
) -> torch.Tensor:
    """Apply a Linear layer under each mask ``level > t``, t in ``ts``: ``[T, N, O]``.

    ``x`` is ``[N, I]`` (the same input at every level) or ``[T, N, I]`` (one input a level),
    ``weight`` ``[O, I]``, ``level`` uint8 ``[O, I]``, ``bias`` ``[O]`` or None, all of one
    floating dtype (float64, float32, bfloat16, float16) and on one device.  ``ts`` are 0..255 in
    any order.  Sums are accumulated in float32 (float64 for float64 inputs).  Raises ValueError
    on shapes, dtypes or levels that do not fit together.
    """
    _check(x, weight, level, ts, bias)
    choose(impl, x)
    return masked_linear_reference(x, weight, level, ts, bias, relu=relu)


def masked_chain(
    x: torch.Tensor, layers: Sequence[Layer], ts: Sequence[int], *, impl: str = "auto"
) -> torch.Tensor:
    """Run a chain of masked Linear layers at every level: ``[T, N, O]``, or ``[T, N]`` for O = 1.

    ``layers`` holds ``(weight [O, I], level uint8 [O, I], bias [O] or None, relu)`` from input to
    output; ``x`` is ``[N, I]``.  Equals `masked_linear` applied layer by layer, but a unit that no
    surviving weight reads is not computed and a unit that reads nothing is its constant act(bias).
    """
    choose(impl, x)
    return masked_chain_reference(x, layers, ts)


def masked_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
) -> torch.Tensor:
    """The equation in plain torch, one level after the other; the specification of the rest."""
    out = []
    for k, t in enumerate(ts):
        kept = level > t
        masked = torch.where(kept, weight, 0.0)
        xt = x if x.dim() == 2 else x[k]
        finite = torch.isfinite(xt)
        y = torch.where(finite, xt, 0.0) @ masked.T
        for i in (~finite).any(0).nonzero().flatten().tolist():  # 0 * inf is not 0: by column
            reads = kept[:, i] & ~finite[:, i, None]
            y = y + torch.where(reads, xt[:, i, None] * masked[:, i], 0.0)
        y = y if bias is None else y + bias
        out.append(torch.relu(y) if relu else y)
    return torch.stack(out)


def masked_chain_reference(
    x: torch.Tensor, layers: Sequence[Layer], ts: Sequence[int]
) -> torch.Tensor:
    """`masked_linear_reference` layer by layer, level by level."""
    out = []
    for t in ts:
        h = x
        for weight, level, bias, relu in layers:
            h = masked_linear_reference(h, weight, level, [t], bias, relu=relu)[0]
        out.append(h)
    stacked = torch.stack(out)
    return stacked[..., 0] if stacked.shape[-1] == 1 else stacked


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None,
) -> None:
    if weight.dim() != 2 or level.shape != weight.shape or level.dtype != torch.uint8:
        raise ValueError(
            f"weight {tuple(weight.shape)} and level {tuple(level.shape)} {level.dtype}: "
            "expected [O, I] and uint8 of the same shape"
        )
    if x.dim() not in (2, 3) or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {tuple(x.shape)}: expected [N, I] or [T, N, I], I = {weight.shape[1]}")
    if x.dim() == 3 and x.shape[0] != len(ts):
        raise ValueError(f"x holds {x.shape[0]} levels, ts {len(ts)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)}: expected [{weight.shape[0]}]")
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}: expected one dtype")
    if not ts or min(ts) < 0 or max(ts) > 255:
        raise ValueError(f"levels {list(ts)}: expected one or more of 0..255")
