"""Activation times gradient for the weights of a Conv2d layer.

For image n, output position p and weight (o, i, r, s), with x the layer's input at that tap and g
the gradient of the target logit at the output (Andrade & Konkle 2025, "Weight scoring"):

    a[n, p] = w * x[n, i, p + (r, s)]          contribution: a[n, p] * g[n, o, p]

`granularity` sums a over the unit first: one weight, one `kernel` (the taps of an (o, i) block)
or one `filter` (all of o).  `magnitude` says where the absolute value then stands:

    position  mean_n sum_p |a g|      image  mean_n |sum_p a g|
    set       |mean_n sum_p a g|      signed mean_n sum_p a g

All but one combination are products of the weight with weight gradients:

    weight, position   |W| * wgrad(|x|, |g|) / N
    image              |unit sum of W * wgrad(x_n, g_n)|, averaged, one image at a time
    set, signed        unit sum of W * wgrad(x, g) / N
    filter, position   mean_n sum_p |g| |conv(x, W)|

`kernel` with `position` does not factor, because the absolute value stands between the sum over
taps and the sum over positions: a fused kernel computes it without holding a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.score_conv import library
from circuitcore.kernels.score_conv.library import Geometry
from circuitcore.kernels.score_conv.reference import (
    _check,
    _geometry,
    _result_dtype,
)


def score_conv(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    magnitude: str = "position",
    granularity: str = "weight",
    spatial: str = "sum",
    impl: str = "auto",
) -> torch.Tensor:
    """Score the weights, kernels or filters of a Conv2d layer.

    weight [O, I/groups, R, S]; x [N, I, H, W] the layer's input; g [N, O, OH, OW] the gradient of
    the target unit's activation at its output.  Returns [O, I/groups, R, S] for granularity
    "weight", [O, I/groups] for "kernel", [O] for "filter", in units of the target's activation;
    float64 if an argument is float64, else float32.  ``spatial="mean"`` divides by OH * OW.
    Raises ValueError for an unknown option or shapes that do not match.
    """
    geometry = _geometry(stride, padding, dilation, groups)
    _check(weight, x, g, geometry, magnitude, granularity, spatial)
    dtype = _result_dtype(weight, x, g)
    weight, x, g = weight.detach().to(dtype), x.detach().to(dtype), g.detach().to(dtype)
    options = [*geometry.stride, *geometry.padding, *geometry.dilation, groups]
    scores = _score_conv(weight, x, g, options, magnitude, granularity, impl)
    return scores / (g.shape[2] * g.shape[3]) if spatial == "mean" else scores


@torch.library.custom_op("circuitcore::score_conv", mutates_args=())
def _score_conv(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    options: Sequence[int],
    magnitude: str,
    granularity: str,
    impl: str,
) -> torch.Tensor:
    """``options``: stride, padding, dilation (two each) and groups."""
    geometry = _geometry(options[:2], options[2:4], options[4:6], options[6])
    chosen = choose(impl, weight, cpu="numba", operation="score_conv")
    if chosen == "triton" and weight.dtype == torch.float64:
        chosen = "torch"  # the Triton kernels are float32
    wgrad: library.Wgrad = library.wgrad
    if chosen == "triton":
        from circuitcore.kernels.score_conv import gpu as score_conv_triton

        wgrad = score_conv_triton.wgrad
    taps = weight.shape[2] * weight.shape[3]
    if granularity == "kernel" and taps == 1:  # a kernel of one tap is a weight
        scores = library.by_wgrad(weight, x, g, geometry, magnitude, "weight", wgrad).flatten(1)
    elif granularity == "filter" and magnitude == "position":
        scores = library.filter_position(weight, x, g, geometry)
    elif granularity == "kernel" and magnitude == "position":
        scores = _kernel_position(weight, x, g, geometry, chosen)
    else:
        scores = library.by_wgrad(weight, x, g, geometry, magnitude, granularity, wgrad)
    return (scores / x.shape[0]).contiguous()


@_score_conv.register_fake
def _(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    options: Sequence[int],
    magnitude: str,
    granularity: str,
    impl: str,
) -> torch.Tensor:
    dims = {"weight": 4, "kernel": 2, "filter": 1}[granularity]
    return weight.new_empty(weight.shape[:dims])


def _kernel_position(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Geometry, chosen: str
) -> torch.Tensor:
    """Sum over images and positions of |g| |tap sum of w x|, [O, I/groups]."""
    if chosen == "numba":
        from circuitcore.kernels.score_conv import cpu as score_conv_cpu

        return score_conv_cpu.kernel_position(weight, x, g, geometry)
    if chosen == "triton":
        from circuitcore.kernels.score_conv import gpu as score_conv_triton

        return score_conv_triton.kernel_position(weight, x, g, geometry)
    return library.kernel_position(weight, x, g, geometry)
