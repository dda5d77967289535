"""Kernel granularity with abs per position on the CPU: the fused numba kernel of `score_conv`.

One task is one input channel and a block of filters.  It gathers the channel's patches (taps by
positions, a tile of positions at a time), and for each filter accumulates the tap sum of w * x
over five taps a pass into one row of positions, then adds sum |g| |row|.  Beside the arguments it
holds one padded copy of x, of g and of the weights, and a tile of patches a thread; never a map.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange

from circuitcore.kernels.compilers import numba_jit

TILE = 768  # most positions a tile: patches of a 3x3 kernel stay in the first cache levels
LANES = 64  # tiles are padded to whole unrolled vectors
TAPS = 5  # taps a pass: more operands than the compiler checks for overlap do not vectorise


@numba_jit()
def _gather(x, stride, dilation, taps, out_width, start, stop, patches):  # type: ignore
    """patches[tap, :] = x at that tap for positions start to stop; x [H, W] is padded."""
    for tap in range(taps[0] * taps[1]):
        r, s = tap // taps[1] * dilation[0], tap % taps[1] * dilation[1]
        position = start
        while position < stop:
            oh, ow = position // out_width, position % out_width
            run = min(out_width - ow, stop - position)
            source = x[oh * stride[0] + r, ow * stride[1] + s :]
            row = patches[tap, position - start :]
            for p in range(run):
                row[p] = source[p * stride[1]]
            position += run


@numba_jit(fastmath={"reassoc", "contract", "nsz"})
def _accumulate(weight, i, begin, end, patches, g, row, out):  # type: ignore
    """out[o, i] += sum over a tile of g[o] * |sum of w * patches|, for the filters begin to end.

    weight [O, I/groups, taps], patches [taps, P], g [O, P] absolute, row [P] is scratch.
    """
    for o in range(begin, end):
        for p in range(row.shape[0]):
            row[p] = 0
        for tap in range(0, patches.shape[0], TAPS):
            w0, w1, w2 = weight[o, i, tap], weight[o, i, tap + 1], weight[o, i, tap + 2]
            w3, w4 = weight[o, i, tap + 3], weight[o, i, tap + 4]
            for p in range(row.shape[0]):
                row[p] += (
                    w0 * patches[tap, p]
                    + w1 * patches[tap + 1, p]
                    + w2 * patches[tap + 2, p]
                    + w3 * patches[tap + 3, p]
                    + w4 * patches[tap + 4, p]
                )
        total = row.dtype.type(0)
        for p in range(row.shape[0]):
            total += abs(row[p]) * g[o, p]
        out[o, i] += total


@numba_jit(parallel=True)
def _kernel_position(weight, x, g, stride, dilation, taps, out_width, positions, block, groups):  # type: ignore
    """weight [O, I/groups, TAPS * k], x [N, I, H, W] padded, g [N, tiles, O, tile] absolute."""
    filters, channels, padded_taps = weight.shape
    tile = g.shape[3]
    per_group = filters // groups
    blocks = (per_group + block - 1) // block
    out = np.zeros((filters, channels), weight.dtype)
    for task in prange(x.shape[1] * blocks):
        channel, part = task // blocks, task % blocks
        group, i = channel // channels, channel % channels
        begin = group * per_group + part * block
        end = min(begin + block, (group + 1) * per_group)
        patches = np.zeros((padded_taps, tile), weight.dtype)
        row = np.empty(tile, weight.dtype)
        for n in range(x.shape[0]):
            for t in range(g.shape[1]):
                stop = min(positions, (t + 1) * tile)
                _gather(x[n, channel], stride, dilation, taps, out_width, t * tile, stop, patches)
                _accumulate(weight, i, begin, end, patches, g[n, t], row, out)
    return out


def kernel_position(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> torch.Tensor:
    """Sum over images and positions of |g| |tap sum of w x|: [O, I/groups].  float32 or float64."""
    images, filters, height, width = g.shape
    taps = weight.shape[2] * weight.shape[3]
    positions = height * width
    tiles = -(-positions // TILE)
    tile = -(-positions // (tiles * LANES)) * LANES
    padded_weight = F.pad(weight.flatten(2), (0, -taps % TAPS)).contiguous()
    padded_x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    padded_g = F.pad(g.flatten(2).abs(), (0, tiles * tile - positions))
    padded_g = padded_g.view(images, filters, tiles, tile).transpose(1, 2).contiguous()
    per_group = filters // groups
    blocks = min(max(1, 12 // x.shape[1]), per_group)  # enough tasks, few repeated gathers
    return torch.from_numpy(
        _kernel_position(
            padded_weight.numpy(),
            padded_x.numpy(),
            padded_g.numpy(),
            stride,
            dilation,
            (weight.shape[2], weight.shape[3]),
            width,
            positions,
            -(-per_group // blocks),
            groups,
        )
    )
