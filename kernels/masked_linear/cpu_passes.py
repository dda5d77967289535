"""Numba passes of the masked Linear layers: survey, gather, epilogue.

Batch is innermost everywhere (``[units, N]``): a weight then multiplies a contiguous run of
images.  Weights are selected by their level, never multiplied by a mask.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

from circuitcore.kernels.compilers import numba_jit

prange = numba.prange
Array = Any  # a numpy array; numba infers the type at the first call


def array(tensor: torch.Tensor) -> Array:
    """A tensor's memory as numpy; 16-bit floats as uint16, for they are only moved, never added."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


@numba_jit(parallel=True)
def row_tops(level: Array, top: Array) -> None:
    """top[o] = the highest level of row o: the row reads nothing at levels >= top[o]."""
    for o in prange(level.shape[0]):
        best = np.uint8(0)
        for i in range(level.shape[1]):
            best = max(best, level[o, i])
        top[o] = best


@numba_jit(parallel=True)
def survey(level: Array, needed: Array, live: Array, read: Array, count: Array) -> None:
    """What survives where, of one layer whose row o is needed at levels < needed[o].

    read[g, i]: the highest level at which a needed row still reads column i (g: groups of rows,
    one a thread; the caller takes their maximum).  count[g, b]: weights whose byte, capped by
    needed[o] and live[i], is b.
    """
    rows, columns = level.shape
    groups = read.shape[0]
    for g in prange(groups):
        for o in range(rows * g // groups, rows * (g + 1) // groups):
            cap = needed[o]
            if cap == 0:
                continue
            for i in range(columns):
                byte = min(level[o, i], cap)
                read[g, i] = max(read[g, i], byte)
            for i in range(columns):
                count[g, min(min(level[o, i], cap), live[i])] += 1


@numba_jit(parallel=True)
def gather_dense(
    weight: Array, level: Array, t: int, rows: Array, columns: Array, out: Array
) -> None:
    """out[r, c] = weight[rows[r], columns[c]] where it survives level t, else 0.

    Whole rows are masked first, which vectorises, and gathered from the first-level cache.
    """
    width = weight.shape[1]
    zero = weight.dtype.type(0)
    last = np.uint8(t)
    for r in prange(rows.size):
        o = rows[r]
        row = np.empty(width, weight.dtype)
        for i in range(width):
            value = weight[o, i]
            row[i] = value if level[o, i] > last else zero
        for c in range(columns.size):
            out[r, c] = row[columns[c]]


@numba_jit(parallel=True, fastmath={"reassoc"})
def add_summed(
    weight: Array, level: Array, low: int, high: int, starts: Array, place: Array, sums: Array
) -> None:
    """sums[o, place[r]] += weight[o, i] where low < level[o, i] <= high, i in the r-th run.

    starts[r] .. starts[r + 1]: columns of run r, copies of one input.
    """
    above, most, zero = np.uint8(low), np.uint8(high), np.float32(0)
    for o in prange(weight.shape[0]):
        for r in range(place.size):
            total = zero
            for i in range(starts[r], starts[r + 1]):
                byte = level[o, i]
                total += weight[o, i] if above < byte and byte <= most else zero
            sums[o, place[r]] += total


@numba_jit(parallel=True)
def activate_tiles(sums: Array, bias: Array, relu: bool, out: Array) -> None:
    """out[r, n] = act(sums[tile, r, image] + bias[r]): tiles of images back to rows of them.

    A NaN passes through the ReLU, as it does in torch.
    """
    width = sums.shape[2]
    for r in prange(out.shape[0]):
        for n in range(sums.shape[0]):
            first = n * width
            for j in range(min(width, out.shape[1] - first)):
                y = sums[n, r, j] + bias[r]
                out[r, first + j] = np.float32(0) if relu and y < 0 else y
