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

from circuitcore.kernels.dispatch import architecture, choose
from circuitcore.kernels.masked.check import all_finite, check_masked
from circuitcore.kernels.masked.cost import MaskedShape
from circuitcore.kernels.masked.paths import masked_path
from circuitcore.kernels.masked_conv2d.cpu import masked_conv2d_cpu
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
) -> torch.Tensor:
    """Apply a Conv2d layer under each mask ``level > t``, t in ``ts``: ``[T, N, O, OH, OW]``.

    ``x`` is ``[N, I, H, W]`` (the same input at every level) or ``[T, N, I, H, W]``, ``weight``
    ``[O, I / groups, R, S]``, ``level`` uint8 of the same shape, ``bias`` ``[O]`` or None, all of
    one floating dtype and on one device.  Sums are accumulated in float32 (float64 for float64).
    The result is channels-last in memory.  float32 products of the Triton kernel are exact
    ("ieee") unless ``torch.backends.cudnn.allow_tf32`` is set and ``impl`` is "auto".  ``impl``
    forces an implementation (`dispatch.choose`).  Raises ValueError on shapes, dtypes or levels
    that do not fit together.
    """
    axes, inputs = "O, I / groups, R, S", "N, I, H, W"
    check_masked(x, weight, level, ts, bias, axes=axes, inputs=inputs, groups=groups)
    options = [*stride, *padding, *dilation, groups]
    return _masked_conv2d(x, weight, level, list(ts), bias, options, relu, impl)


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
) -> torch.Tensor:
    """``options``: stride, padding, dilation (two each) and groups."""
    stride, padding, dilation = ((options[k], options[k + 1]) for k in (0, 2, 4))
    chosen = choose(impl, x, cpu="numba")
    if chosen == "triton" and _triton_runs(x, weight, level, ts, options, impl):
        from circuitcore.kernels.masked_conv2d.gpu import launch_conv

        tf32 = torch.backends.cudnn.allow_tf32 and impl == "auto"
        out = launch_conv(
            x, weight, level, ts, bias, out_size(x, weight, options),
            stride=stride, padding=padding, dilation=dilation, groups=options[6], relu=relu,
            precision="tf32" if tf32 else "ieee", arch=architecture(x.device),
        )  # fmt: skip
    elif chosen == "numba" and all_finite(x):
        out = masked_conv2d_cpu(
            x, weight, level, ts, bias, stride, padding, dilation, options[6], relu
        )
    else:
        out = masked_conv2d_reference(
            x, weight, level, ts, bias,
            stride=stride, padding=padding, dilation=dilation, groups=options[6], relu=relu,
        )  # fmt: skip
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
) -> torch.Tensor:
    high, wide = out_size(x, weight, options)
    return x.new_empty(len(ts), x.shape[-4], high, wide, weight.shape[0]).movedim(-1, 2)


def _triton_runs(
    x: torch.Tensor, weight: torch.Tensor, level: torch.Tensor, ts: Sequence[int],
    options: Sequence[int], impl: str,
) -> bool:  # fmt: skip
    """Whether the kernel and not the library runs: it is chosen, and the inputs are finite."""
    forced = "triton" if impl == "triton:packed" else impl  # panels are for linear layers
    shape = masked_shape(x, weight, ts, options)
    path = masked_path("masked_conv2d", shape, architecture(x.device), forced)
    return path == "plain" and x.dtype != torch.float64 and all_finite(x)


def out_size(x: torch.Tensor, weight: torch.Tensor, options: Sequence[int]) -> Pair:
    """(OH, OW); ``options`` as the op takes them."""

    def along(axis: int) -> int:
        reach = options[4 + axis] * (weight.shape[2 + axis] - 1) + 1
        return (x.shape[axis - 2] + 2 * options[2 + axis] - reach) // options[axis] + 1

    return along(0), along(1)


def masked_shape(
    x: torch.Tensor, weight: torch.Tensor, ts: Sequence[int], options: Sequence[int]
) -> MaskedShape:
    """What `paths.masked_path` and `cost` need to know of a call."""
    high, wide = out_size(x, weight, options)
    return MaskedShape(
        levels=len(ts),
        batch=x.shape[-4] * high * wide,
        rows=weight.shape[0] // options[6],
        columns=weight[0].numel(),
        dtype=str(x.dtype).removeprefix("torch."),
        groups=options[6],
        shared=x.dim() == 4,
    )
