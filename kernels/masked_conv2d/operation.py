"""Convolutions of a nested pruning sweep: many masks of one filter bank in one call.

Andrade & Konkle 2025, Circuit extraction, for Conv2d layers.  One byte a weight holds every level
of the sweep: a weight is kept at level ``t`` iff its byte is greater than ``t``.

    out[t, n, o, p] = act( sum_{i,r,s}  W[o, i, r, s] [level[o, i, r, s] > t]  x[t, n, i, p_rs]
                           + b[o] )

with ``p_rs = p * stride - padding + (r, s) * dilation`` and zeros outside the input.  The sum runs
over the kept weights only: NaN and infinities never leak through a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked.check import all_finite, check_masked, has_nan
from circuitcore.kernels.masked_conv2d.cpu import masked_conv2d_cpu
from circuitcore.kernels.masked_conv2d.library import masked_conv2d_library
from circuitcore.kernels.masked_conv2d.reference import (
    Pair,
    masked_conv2d_reference,
)


def masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool,
    impl: str = "auto",
    check: bool = True,
) -> torch.Tensor:
    """Apply a Conv2d layer under each mask ``level > t``, t in ``ts``: ``[T, N, O, OH, OW]``.

    ``x`` is ``[N, I, H, W]`` (the same input at every level) or ``[T, N, I, H, W]``, ``weight``
    ``[O, I / groups, R, S]``, ``level`` uint8 of the same shape, ``bias`` ``[O]`` or None, all of
    one floating dtype and on one device.  Sums are accumulated in float32 (float64 for float64).
    The result is channels-last in memory.  ``impl`` forces an implementation (`dispatch.choose`);
    on a GPU there is one, the library's convolution on masked weights, whose float32 products are
    TF32 where ``torch.backends.cudnn.allow_tf32`` says so.  ``check=False`` on a GPU: nothing
    waits for the device, and infinities or NaN *in x* may show as NaN where only pruned weights
    read them; on the CPU they never do.  Raises ValueError on shapes, dtypes or levels that do not
    fit together.
    """
    axes, inputs = "O, I / groups, R, S", "N, I, H, W"
    check_masked(x, weight, level, ts, bias, axes=axes, inputs=inputs, groups=groups)
    options = [*stride, *padding, *dilation, groups]
    return _masked_conv2d(x, weight, level, list(ts), bias, options, relu, impl, check)


@torch.library.custom_op("circuitcore::masked_conv2d", mutates_args=())
def _masked_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: list[int],
    bias: torch.Tensor | None,
    options: list[int],
    relu: bool,
    impl: str,
    check: bool,
) -> torch.Tensor:
    """``options``: stride, padding, dilation (two each) and groups."""
    stride, padding, dilation = ((options[k], options[k + 1]) for k in (0, 2, 4))

    def reference() -> torch.Tensor:
        return masked_conv2d_reference(
            x, weight, level, ts, bias,
            stride=stride, padding=padding, dilation=dilation, groups=options[6], relu=relu,
        )  # fmt: skip

    chosen = choose(impl, x, cpu="numba")
    if chosen == "numba" and all_finite(x):
        out = masked_conv2d_cpu(
            x, weight, level, ts, bias, stride, padding, dilation, options[6], relu
        )
    elif x.device.type == "cpu":
        out = reference()
    else:
        out = masked_conv2d_library(
            x, weight, level, ts, bias, stride, padding, dilation, options[6], relu
        )
        out = reference() if check and has_nan(out) else out
    return out.movedim(2, -1).contiguous().movedim(-1, 2)


@_masked_conv2d.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: list[int],
    bias: torch.Tensor | None,
    options: list[int],
    relu: bool,
    impl: str,
    check: bool,
) -> torch.Tensor:
    high, wide = out_size(x, weight, options)
    return x.new_empty(len(ts), x.shape[-4], high, wide, weight.shape[0]).movedim(-1, 2)


def out_size(x: torch.Tensor, weight: torch.Tensor, options: Sequence[int]) -> Pair:
    """(OH, OW); ``options`` as the op takes them."""

    def along(axis: int) -> int:
        reach = options[4 + axis] * (weight.shape[2 + axis] - 1) + 1
        return (x.shape[axis - 2] + 2 * options[2 + axis] - reach) // options[axis] + 1

    return along(0), along(1)
