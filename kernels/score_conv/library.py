"""The library's half of `score_conv`: weight gradients, and maps one channel or image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Wgrad = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input: (vertical, horizontal) pairs, and its groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def unit_sum(values: torch.Tensor, granularity: str) -> torch.Tensor:
    """Sum [O, I, R, S, ...] over the taps (kernel) or over all but o (filter)."""
    dims = {"weight": (), "kernel": (2, 3), "filter": (1, 2, 3)}[granularity]
    return values.sum(dims) if dims else values


def wgrad(
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
            total += wgrad(weight, x[n : n + 1], g[n : n + 1], geometry).abs_()
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


def by_wgrad(
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
            total = total + unit_sum(weight * gradient, granularity).abs()
        return total
    total = unit_sum(weight * wgrad(weight, x, g, geometry), granularity)
    return total.abs() if magnitude == "set" else total


def filter_position(
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


def kernel_position(
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
