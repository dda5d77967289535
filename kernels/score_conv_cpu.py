"""Kernel granularity with abs per position on the CPU: the fused numba kernel of `score_conv`.

One task is one input channel and a block of filters.  It gathers the channel's patches (taps by
positions, a tile of positions at a time), and for every two filters accumulates the tap sums of
w * x into two rows of positions; the pass over the last taps adds |g| |sum| to the scores.  Beside
the arguments it holds one padded copy of x, of g and of the weights, and a tile of patches and two
rows a thread; never a map.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from circuitcore.kernels.compilers import numba_jit

TILE = 768  # most positions a tile: patches of a 3x3 kernel stay in the first cache levels
LANES = 32  # tiles are padded to whole unrolled vectors
LAST = 9  # taps of the last pass, which stores nothing
EARLY = 3  # taps of the passes before: with more operands to check for overlap, no vectors


@numba_jit()
def _gather(x, stride, dilation, taps, out_width, start, stop, patches):  # type: ignore
    """patches[tap, :] = x at that tap for positions start to stop; x [phases, phases, H, W]."""
    for tap in range(taps[0] * taps[1]):
        r, s = tap // taps[1] * dilation[0], tap % taps[1] * dilation[1]
        phase = x[r % stride[0], s % stride[1]]
        position = start
        while position < stop:
            oh, ow = position // out_width, position % out_width
            run = min(out_width - ow, stop - position)
            source = phase[oh + r // stride[0], ow + s // stride[1] :]
            row = patches[tap, position - start :]
            for p in range(run):
                row[p] = source[p]
            position += run


@numba_jit(fastmath={"reassoc", "contract", "nsz"})
def _accumulate(weight, begin, end, patches, g, rows, out):  # type: ignore
    """out[o] += sum over a tile of g[o] * |sum of w * patches|, for the filters begin to end.

    weight [O, taps] of one channel, patches [taps, P], g [O, P] absolute; rows [2, P] is scratch,
    0 on entry.  Two filters share every load; the last nine taps go from registers to the sum.
    """
    positions = rows.shape[1]
    early = patches.shape[0] - LAST
    for o in range(begin, end, 2):
        q = min(o + 1, end - 1)  # the last filter of an odd number is computed twice
        if early:
            for p in range(positions):
                rows[0, p] = 0
                rows[1, p] = 0
        for t in range(0, early, EARLY):
            a0, a1, a2 = weight[o, t], weight[o, t + 1], weight[o, t + 2]
            b0, b1, b2 = weight[q, t], weight[q, t + 1], weight[q, t + 2]
            for p in range(positions):
                x0, x1, x2 = patches[t, p], patches[t + 1, p], patches[t + 2, p]
                rows[0, p] += a0 * x0 + a1 * x1 + a2 * x2
                rows[1, p] += b0 * x0 + b1 * x1 + b2 * x2
        a0, a1, a2 = weight[o, early], weight[o, early + 1], weight[o, early + 2]
        a3, a4, a5 = weight[o, early + 3], weight[o, early + 4], weight[o, early + 5]
        a6, a7, a8 = weight[o, early + 6], weight[o, early + 7], weight[o, early + 8]
        b0, b1, b2 = weight[q, early], weight[q, early + 1], weight[q, early + 2]
        b3, b4, b5 = weight[q, early + 3], weight[q, early + 4], weight[q, early + 5]
        b6, b7, b8 = weight[q, early + 6], weight[q, early + 7], weight[q, early + 8]
        first = rows.dtype.type(0)
        second = rows.dtype.type(0)
        for p in range(positions):
            x0, x1, x2 = patches[early, p], patches[early + 1, p], patches[early + 2, p]
            x3, x4, x5 = patches[early + 3, p], patches[early + 4, p], patches[early + 5, p]
            x6, x7, x8 = patches[early + 6, p], patches[early + 7, p], patches[early + 8, p]
            a = rows[0, p] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3 + a4 * x4
            b = rows[1, p] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3 + b4 * x4
            a += a5 * x5 + a6 * x6 + a7 * x7 + a8 * x8
            b += b5 * x5 + b6 * x6 + b7 * x7 + b8 * x8
            first += abs(a) * g[o, p]
            second += abs(b) * g[q, p]
        out[o] += first
        if q > o:
            out[q] += second


@numba_jit(parallel=True)
def _kernel_position(  # type: ignore
    weight, x, g, stride, dilation, taps, out_width, positions, block, groups
):
    """weight [I/groups, O, taps], x [N, I, phases, phases, H, W], g [N, tiles, O, P], padded."""
    channels, filters, padded_taps = weight.shape
    tile = g.shape[3]
    per_group = filters // groups
    blocks = (per_group + block - 1) // block
    out = np.zeros((channels, filters), weight.dtype)  # a task's run of filters side by side
    for task in prange(x.shape[1] * blocks):
        channel, part = task // blocks, task % blocks
        group, i = channel // channels, channel % channels
        begin = group * per_group + part * block
        end = min(begin + block, (group + 1) * per_group)
        patches = np.zeros((padded_taps, tile), weight.dtype)
        rows = np.zeros((2, tile), weight.dtype)
        for n in range(x.shape[0]):
            for t in range(g.shape[1]):
                stop = min(positions, (t + 1) * tile)
                _gather(x[n, channel], stride, dilation, taps, out_width, t * tile, stop, patches)
                _accumulate(weight[i], begin, end, patches, g[n, t], rows, out[i])
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
    padded_taps = LAST + -(-max(taps - LAST, 0) // EARLY) * EARLY
    # numpy prepares: torch's idle threads would spin while numba's want the processor
    flat = weight.flatten(2).numpy().transpose(1, 0, 2)  # [I/groups, O, taps]
    padded_weight = np.pad(flat, ((0, 0), (0, 0), (0, padded_taps - taps)))
    # whole strides, split by phase: the positions of a tap then lie side by side
    ends = [padding[d] + -(x.shape[2 + d] + 2 * padding[d]) % stride[d] for d in (0, 1)]
    margins = ((0, 0), (0, 0), (padding[0], ends[0]), (padding[1], ends[1]))
    padded_x = np.pad(x.numpy(), margins)
    rows, columns = padded_x.shape[2] // stride[0], padded_x.shape[3] // stride[1]
    padded_x = padded_x.reshape(*x.shape[:2], rows, stride[0], columns, stride[1])
    padded_x = np.ascontiguousarray(padded_x.transpose(0, 1, 3, 5, 2, 4))
    padded_g = np.pad(g.flatten(2).numpy(), ((0, 0), (0, 0), (0, tiles * tile - positions)))
    padded_g = padded_g.reshape(images, filters, tiles, tile).transpose(0, 2, 1, 3)
    padded_g = np.abs(padded_g, order="C")
    per_group = filters // groups
    blocks = min(max(1, 6 // x.shape[1]), per_group)  # enough tasks, few repeated gathers
    scores = _kernel_position(
        np.ascontiguousarray(padded_weight),
        padded_x,
        padded_g,
        stride,
        dilation,
        (weight.shape[2], weight.shape[3]),
        width,
        positions,
        -(-per_group // blocks),
        groups,
    )
    return torch.from_numpy(np.ascontiguousarray(scores.T))
