"""Kernel granularity with abs per position on the CPU: the layouts of the fused numba kernels.

A map holds one value per kernel (o, i) and position: the sum of w * x over the taps.  Sixteen
kernels (eight in float64) are the lanes of a vector, and their maps are computed at a few positions
at a time, from the first tap to the last in registers, where |g| |map| is summed: no map is stored.
What the lanes are depends on the layer (`kernel_position`):

    channels   of one filter share g: positions where g is 0 (most, behind ReLU and max pooling) are
               never visited
    filters    share x: for the few channels of a first layer
    pairs      of a channel and one of its filters share nothing: for depthwise layers

Beside the arguments it holds a padded copy of x, of the weights and of what is not 0 in g.  The
order of every sum is fixed: any number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from circuitcore.kernels.score_conv import library
from circuitcore.kernels.score_conv.cpu_passes import (
    PASS,
    SPAN,
    VECTOR_BYTES,
    by_channels,
    by_filters,
)
from circuitcore.kernels.score_conv.library import Geometry

Array = Any  # a numpy array


def kernel_position(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """Sum over images and positions of |g| |tap sum of w x|: [O, I/groups].  float32 or float64."""
    taps = weight.shape[2] * weight.shape[3]
    bound = _largest(weight.numpy()) * _largest(x.numpy()) * taps
    if not bound < torch.finfo(weight.dtype).max:  # a map may be NaN or Inf where g is 0
        return library.kernel_position(weight, x, g, geometry)
    filters, channels = weight.shape[:2]
    lanes = VECTOR_BYTES // weight.element_size()

    def filled(count: int) -> float:
        return count / (-(-count // lanes) * lanes)

    # numpy prepares: torch's idle threads would spin while numba's want the processor
    ways = {
        _channels: 2 * filled(channels),  # twice: positions are left out
        _filters: filled(filters // geometry.groups),
        _pairs: filled(channels * geometry.groups),
    }
    scores = max(ways, key=ways.__getitem__)(weight.numpy(), x.numpy(), g.numpy(), geometry)
    return torch.from_numpy(np.ascontiguousarray(scores))


def _channels(weight: Array, x: Array, g: Array, geometry: Geometry) -> Array:
    """The lanes are input channels of a group."""
    filters, channels, *size = weight.shape
    groups = geometry.groups
    images = x.reshape(len(x) * groups, channels, *x.shape[2:])
    images = _in_lanes(images, geometry.padding)  # [N * groups, blocks, H, W, lanes]
    _, blocks, _, width, lanes = images.shape
    taps = _offsets(size, geometry.dilation, width, lanes)
    out = _empty((blocks, filters, lanes), weight.dtype)
    by_channels(
        np.ascontiguousarray(weight.reshape(filters, channels, taps.size)),
        np.ascontiguousarray(g.reshape(len(g), filters, -1)),
        images.reshape(len(x), groups, blocks, -1, lanes),
        _offsets(g.shape[2:], geometry.stride, width, lanes),
        taps,
        _empty((blocks, filters, taps.size, lanes), weight.dtype),
        out,
    )
    return out.transpose(1, 0, 2).reshape(filters, -1)[:, :channels]


def _filters(weight: Array, x: Array, g: Array, geometry: Geometry) -> Array:
    """The lanes are filters of a group."""
    filters, channels, *size = weight.shape
    groups, rows = geometry.groups, len(x) * geometry.groups
    images = np.pad(x, ((0, 0), (0, 0), *((padding, padding) for padding in geometry.padding)))
    width = images.shape[3]
    scores = _by_filters(
        weight.reshape(groups, -1, channels, size[0] * size[1]),
        g.reshape(rows, filters // groups, -1),
        images.reshape(rows, channels, -1),
        0,
        _offsets(g.shape[2:], geometry.stride, width, 1),
        _offsets(size, geometry.dilation, width, 1),
    )
    return scores.reshape(filters, channels)


def _pairs(weight: Array, x: Array, g: Array, geometry: Geometry) -> Array:
    """The lanes are the input channels of all groups, each with one of its filters at a time."""
    filters, channels, *size = weight.shape
    groups = geometry.groups
    images = _in_lanes(x, geometry.padding)  # [N, blocks, H, W, lanes]
    _, blocks, _, width, lanes = images.shape
    by_group = weight.reshape(groups, -1, channels, size[0] * size[1])
    g_by_group = g.reshape(len(g), groups, filters // groups, -1)
    scores = [
        _by_filters(
            by_group[:, j].reshape(1, groups * channels, 1, -1),
            g_by_group[:, :, j],
            images.reshape(len(x), blocks, -1),
            channels,
            _offsets(g.shape[2:], geometry.stride, width, lanes),
            _offsets(size, geometry.dilation, width, lanes),
        ).reshape(groups, channels)
        for j in range(filters // groups)
    ]
    return np.stack(scores, axis=1).reshape(filters, channels)


def _by_filters(
    weight: Array, g: Array, x: Array, pairs: int, positions: Array, taps: Array
) -> Array:
    """[groups, O, I]; weight [groups, O, I, T], g [N * groups, O, P], the rest as `by_filters`."""
    groups, filters, channels, _ = weight.shape
    packed = _in_lanes(weight)
    blocks, lanes = packed.shape[1], packed.shape[-1]
    places = np.pad(positions, (0, -positions.size % PASS)).astype(np.uint32)
    spans = -(-places.size // (PASS * SPAN))
    out = _empty((len(g), spans, blocks, channels, lanes), weight.dtype)
    by_filters(packed, np.ascontiguousarray(g), x, pairs, places, taps, out)
    scores = out.reshape(-1, groups, spans, blocks, channels, lanes).sum((0, 2))
    return scores.transpose(0, 1, 3, 2).reshape(groups, -1, channels)[:, :filters]


def _in_lanes(values: Array, padding: tuple[int, int] = (0, 0)) -> Array:
    """values [A, C, H, W] padded with zeros, as [A, blocks of channels, H, W, lanes]."""
    count, channels, height, width = values.shape
    lanes = VECTOR_BYTES // values.itemsize
    blocks = -(-channels // lanes)
    size = (height + 2 * padding[0], width + 2 * padding[1])
    out = _empty((count, blocks, *size, lanes), values.dtype)
    out.fill(0)
    inside = out[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    for b in range(blocks):
        part = values[:, b * lanes : (b + 1) * lanes]
        inside[:, b, :, :, : part.shape[1]] = np.moveaxis(part, 1, -1)
    return out


def _offsets(count: Sequence[int], step: tuple[int, int], width: int, lanes: int) -> Array:
    """Elements from the first position, or tap, to each; an image is ``width`` pixels wide."""
    rows, columns = np.arange(count[0]) * step[0], np.arange(count[1]) * step[1]
    return ((rows[:, None] * width + columns) * lanes).ravel()


def _empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array that begins on a cache line: torch sees to that, numpy does not."""
    return torch.empty(shape, dtype=torch.float64 if dtype == np.float64 else torch.float32).numpy()


def _largest(values: Array) -> float:
    """The largest absolute value; NaN if there is one."""
    return max(float(values.max()), -float(values.min()))
