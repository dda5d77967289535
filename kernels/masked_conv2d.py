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
from typing import Any

import torch
import torch.nn.functional as F

from circuitcore.kernels.cost import MaskedShape
from circuitcore.kernels.dispatch import architecture, choose, masked_path
from circuitcore.kernels.masked import all_finite, check_masked
from circuitcore.kernels.masked_conv2d_cpu import masked_conv2d_cpu

Pair = tuple[int, int]


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
        from circuitcore.kernels.masked_conv2d_triton import launch

        tf32 = torch.backends.cudnn.allow_tf32 and impl == "auto"
        out = launch(
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
    """What `dispatch.masked_path` and `cost` need to know of a call."""
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


def masked_conv2d_reference(
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
) -> torch.Tensor:
    """The equation in plain torch, one level after the other; the specification of the rest."""
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip
    out = []
    for k, t in enumerate(ts):
        kept = level > t
        masked = torch.where(kept, weight, 0.0)
        xt = x if x.dim() == 4 else x[k]
        finite = torch.isfinite(xt)
        y = F.conv2d(torch.where(finite, xt, 0.0), masked, None, **options)
        if not bool(finite.all()):
            y = y + _non_finite_part(xt, masked, kept, **options)
        y = y if bias is None else y + bias[:, None, None]
        out.append(torch.relu(y) if relu else y)
    return torch.stack(out)


def _non_finite_part(
    x: torch.Tensor, masked: torch.Tensor, kept: torch.Tensor, **options: Any
) -> torch.Tensor:
    """What the NaN and infinite inputs add through kept weights: 0, an infinity or NaN.

    A product is +inf, -inf or NaN; counting how many of each reach an output by convolutions of
    0/1 maps keeps 0 * inf of the pruned weights out of the sum.
    """

    def reached(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv2d(inputs.to(x.dtype), weights.to(x.dtype), None, **options) > 0

    positive, negative, nan = x == torch.inf, x == -torch.inf, torch.isnan(x)
    above, below = kept & (masked > 0), kept & (masked < 0)
    void = kept & ((masked == 0) | torch.isnan(masked))  # inf * 0 and inf * NaN
    plus = reached(positive, above) | reached(negative, below)
    minus = reached(positive, below) | reached(negative, above)
    bad = reached(nan, kept) | reached(positive | negative, void) | (plus & minus)
    part = torch.zeros(plus.shape, dtype=x.dtype, device=x.device)
    part = part.masked_fill(plus, torch.inf).masked_fill(minus, -torch.inf)
    return part.masked_fill(bad, torch.nan)
