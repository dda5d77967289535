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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.score_linear import MAGNITUDES

GRANULARITIES = ("weight", "kernel", "filter")
Wgrad = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input: (vertical, horizontal) pairs, and its groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


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
    chosen = choose(impl, weight, cpu="numba")
    if chosen == "triton" and dtype == torch.float64:
        chosen = "torch"  # the Triton kernels are float32
    wgrad: Wgrad = _wgrad
    if chosen == "triton":
        from circuitcore.kernels import score_conv_triton

        wgrad = score_conv_triton.wgrad
    taps = weight.shape[2] * weight.shape[3]
    if granularity == "kernel" and taps == 1:  # a kernel of one tap is a weight
        scores = _by_wgrad(weight, x, g, geometry, magnitude, "weight", wgrad).flatten(1)
    elif granularity == "filter" and magnitude == "position":
        scores = _filter_position(weight, x, g, geometry)
    elif granularity == "kernel" and magnitude == "position":
        scores = _kernel_position(weight, x, g, geometry, chosen)
    else:
        scores = _by_wgrad(weight, x, g, geometry, magnitude, granularity, wgrad)
    scores /= x.shape[0]
    return scores / (g.shape[2] * g.shape[3]) if spatial == "mean" else scores


def score_conv_reference(
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
) -> torch.Tensor:
    """The definition: every contribution at every position of every image is written out."""
    geometry = _geometry(stride, padding, dilation, groups)
    _check(weight, x, g, geometry, magnitude, granularity, spatial)
    dtype = _result_dtype(weight, x, g)
    weight, x, g = weight.to(dtype), x.to(dtype), g.to(dtype)
    filters, channels, rows, columns = weight.shape
    totals = []
    for o in range(filters):
        first = o // (filters // groups) * channels
        total = torch.zeros((), dtype=dtype, device=weight.device)
        for x_n, g_n in zip(x, g, strict=True):
            patches = F.unfold(
                x_n[None, first : first + channels],
                (rows, columns),
                dilation=geometry.dilation,
                padding=geometry.padding,
                stride=geometry.stride,
            ).view(channels, rows, columns, -1)
            a = weight[o][..., None] * patches  # [I/groups, R, S, positions]
            a = _unit_sum(a[None], granularity)[0]
            contribution = a * g_n[o].reshape(-1)
            if magnitude == "position":
                contribution = contribution.abs()
            image = contribution.sum(-1)
            total = total + (image.abs() if magnitude == "image" else image)
        totals.append(total / x.shape[0])
    scores = torch.stack(totals)
    scores = scores.abs() if magnitude == "set" else scores
    return scores / (g.shape[2] * g.shape[3]) if spatial == "mean" else scores


def _unit_sum(values: torch.Tensor, granularity: str) -> torch.Tensor:
    """Sum [O, I, R, S, ...] over the taps (kernel) or over all but o (filter)."""
    dims = {"weight": (), "kernel": (2, 3), "filter": (1, 2, 3)}[granularity]
    return values.sum(dims) if dims else values


def _wgrad(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    *,
    abs_position: bool = False,
    abs_image: bool = False,
) -> torch.Tensor:
    """Sum over images of f(sum over positions of x * g), [O, I/groups, R, S], by the library."""
    if abs_image:
        total = torch.zeros_like(weight)
        for n in range(x.shape[0]):
            total += _wgrad(weight, x[n : n + 1], g[n : n + 1], geometry).abs_()
        return total
    if abs_position:
        x, g = x.abs(), g.abs()
    return torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        geometry.groups,
        (False, True, False),
    )[1]


def _by_wgrad(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    magnitude: str,
    granularity: str,
    wgrad: Wgrad,
) -> torch.Tensor:
    """The combinations that factor into weight gradients; summed, not averaged, over images."""
    if magnitude == "position":  # weight granularity only
        return weight.abs() * wgrad(weight, x, g, geometry, abs_position=True)
    if magnitude == "image" and granularity == "weight":
        return weight.abs() * wgrad(weight, x, g, geometry, abs_image=True)
    if magnitude == "image":
        total = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for n in range(x.shape[0]):
            gradient = wgrad(weight, x[n : n + 1], g[n : n + 1], geometry)
            total = total + _unit_sum(weight * gradient, granularity).abs()
        return total
    total = _unit_sum(weight * wgrad(weight, x, g, geometry), granularity)
    return total.abs() if magnitude == "set" else total


def _filter_position(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    total = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
    for n in range(x.shape[0]):
        a = F.conv2d(
            x[n : n + 1],
            weight,
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.groups,
        )
        total += a.mul_(g[n : n + 1]).abs_().sum((0, 2, 3))
    return total


def _kernel_position(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Geometry, chosen: str
) -> torch.Tensor:
    """Sum over images and positions of |g| |tap sum of w x|, [O, I/groups]."""
    if chosen == "numba":
        from circuitcore.kernels import score_conv_cpu

        return score_conv_cpu.kernel_position(
            weight, x, g, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )
    if chosen == "triton":
        from circuitcore.kernels import score_conv_triton

        return score_conv_triton.kernel_position(weight, x, g, geometry)
    return _kernel_position_torch(weight, x, g, geometry)


def _kernel_position_torch(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """One input channel at a time: its maps for every filter are one product, [O, positions]."""
    filters, channels, rows, columns = weight.shape
    per_group = filters // geometry.groups
    total = torch.zeros(filters, channels, dtype=weight.dtype, device=weight.device)
    for n in range(x.shape[0]):
        for channel in range(x.shape[1]):
            group, i = divmod(channel, channels)
            mine = slice(group * per_group, (group + 1) * per_group)
            patches = F.unfold(
                x[n : n + 1, channel : channel + 1],
                (rows, columns),
                dilation=geometry.dilation,
                padding=geometry.padding,
                stride=geometry.stride,
            )[0]
            maps = weight[mine, i].flatten(1) @ patches
            total[mine, i] += maps.mul_(g[n, mine].flatten(1)).abs_().sum(1)
    return total


def _geometry(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    return Geometry(
        (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups
    )


def _result_dtype(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    magnitude: str,
    granularity: str,
    spatial: str,
) -> None:
    if magnitude not in MAGNITUDES:
        raise ValueError(f"magnitude={magnitude!r}: one of {', '.join(MAGNITUDES)}")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r}: one of {', '.join(GRANULARITIES)}")
    if spatial not in ("sum", "mean"):
        raise ValueError(f"spatial={spatial!r}: sum or mean")
    shapes = f"weight {tuple(weight.shape)}, x {tuple(x.shape)}, g {tuple(g.shape)}"
    if weight.ndim != 4 or x.ndim != 4 or g.ndim != 4:
        raise ValueError(f"{shapes}: [O, I/groups, R, S], [N, I, H, W] and [N, O, OH, OW] expected")
    size = [
        (x.shape[2 + d] + 2 * geometry.padding[d] - geometry.dilation[d] * (weight.shape[2 + d] - 1)
         - 1) // geometry.stride[d] + 1
        for d in (0, 1)
    ]  # fmt: skip
    expected = (x.shape[0], weight.shape[0], *size)
    channels = weight.shape[1] * geometry.groups
    if (
        tuple(g.shape) != expected
        or x.shape[1] != channels
        or weight.shape[0] % geometry.groups
        or x.shape[0] == 0
    ):
        raise ValueError(f"{shapes}: g must be {expected} and x have {channels} channels")
