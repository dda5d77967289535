"""Numba passes of the masked Linear layers: survey, gather, and sparse x dense products.

Batch is innermost everywhere (``[units, N]``): a weight then multiplies a contiguous run of
images.  Weights are selected by their level, never multiplied by a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch

from circuitcore.kernels.compilers import numba_jit
from circuitcore.kernels.cost import COLUMN_BLOCK

prange = numba.prange
Array = Any  # a numpy array; numba infers the type at the first call


def array(tensor: torch.Tensor) -> Array:
    """A tensor's memory as numpy; 16-bit floats as uint16, for they are only moved, never added."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def use_torch_threads() -> None:
    """Let numba run as many threads as torch does."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


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
    """out[r, c] = weight[rows[r], columns[c]] where it survives level t, else 0."""
    zero = weight.dtype.type(0)
    for r in prange(rows.size):
        o = rows[r]
        for c in range(columns.size):
            i = columns[c]
            out[r, c] = weight[o, i] if level[o, i] > t else zero


@numba_jit(parallel=True)
def count_sparse(
    level: Array, rows: Array, cap: Array, bucket: Array, columns: Array, pointer: Array
) -> None:
    """pointer[k, b, r + 1] = nonzeros of bucket k, column block b, row rows[r].

    A weight's bucket is bucket[min(level, cap[row])], 255 for none; block b holds
    columns[b * COLUMN_BLOCK : (b + 1) * COLUMN_BLOCK].
    """
    for r in prange(rows.size):
        o = rows[r]
        for c in range(columns.size):
            k = bucket[min(level[o, columns[c]], cap[o])]
            if k != 255:
                pointer[k, c // COLUMN_BLOCK, r + 1] += 1


@numba_jit(parallel=True)
def fill_sparse(
    weight: Array,
    level: Array,
    rows: Array,
    cap: Array,
    bucket: Array,
    columns: Array,
    pointer: Array,
    place: Array,
    value: Array,
) -> None:
    """Write each nonzero where `count_sparse`, summed up, says: ordered by bucket, block, row."""
    for r in prange(rows.size):
        o = rows[r]
        at = pointer[:, :, r].copy()
        for b in range(pointer.shape[1]):
            first = b * COLUMN_BLOCK
            for c in range(min(COLUMN_BLOCK, columns.size - first)):
                i = columns[first + c]
                k = bucket[min(level[o, i], cap[o])]
                if k != 255:
                    p = at[k, b]
                    at[k, b] = p + 1
                    place[p] = c
                    value[p] = weight[o, i]


@cache
def add_sparse(width: int) -> Callable[..., None]:
    """The sparse x dense product for tiles of ``width`` images (a constant to the compiler).

    (pointer [blocks, R + 1], place, value, x [N / width, C, width], out [N / width, R, width]):
    out[n, r, j] += sum over the nonzeros of row r of value * x[n, column, j].  A tile of x
    (COLUMN_BLOCK inputs) stays in the second-level cache while all rows read it, and four
    nonzeros go together, so that a sum is loaded and stored once for four multiply-adds.
    """

    @numba_jit(parallel=True, fastmath={"contract"})
    def add(pointer: Array, place: Array, value: Array, x: Array, out: Array) -> None:
        tiles, rows, _ = out.shape
        parts = 1 if tiles > 3 else 4  # enough tasks for the threads when the batch is small
        for task in prange(tiles * parts):
            n, part = task // parts, task % parts
            for b in range(pointer.shape[0]):
                base = b * COLUMN_BLOCK
                if pointer[b, 0] == pointer[b, rows]:
                    continue
                for r in range(rows * part // parts, rows * (part + 1) // parts):
                    p, end = pointer[b, r], pointer[b, r + 1]
                    while p + 4 <= end:
                        c0, c1 = base + place[p], base + place[p + 1]
                        c2, c3 = base + place[p + 2], base + place[p + 3]
                        v0, v1, v2, v3 = value[p], value[p + 1], value[p + 2], value[p + 3]
                        for j in range(width):
                            out[n, r, j] += (
                                v0 * x[n, c0, j]
                                + v1 * x[n, c1, j]
                                + v2 * x[n, c2, j]
                                + v3 * x[n, c3, j]
                            )
                        p += 4
                    while p < end:
                        c0, v0 = base + place[p], value[p]
                        for j in range(width):
                            out[n, r, j] += v0 * x[n, c0, j]
                        p += 1

    return add


@numba_jit(parallel=True)
def to_tiles(x: Array, out: Array) -> None:
    """out[n, r, j] = x[r, n * width + j], zeros behind the last image and the last row of x."""
    width = out.shape[2]
    for n in prange(out.shape[0]):
        taken = min(width, x.shape[1] - n * width)
        for r in range(out.shape[1]):
            for j in range(width):
                inside = r < x.shape[0] and j < taken
                out[n, r, j] = x[r, n * width + j] if inside else np.float32(0)


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


class Sparse:
    """Weights of several buckets, each ordered by column block and row, ready for `add_sparse`."""

    def __init__(
        self,
        weight: Array,
        level: Array,
        rows: Array,
        cap: Array,
        bucket: Array,
        columns: Array,
    ) -> None:
        buckets = int(bucket[bucket != 255].max(initial=0)) + 1
        blocks = -(-columns.size // COLUMN_BLOCK)
        self.pointer = np.zeros((buckets, blocks, rows.size + 1), np.int64)
        count_sparse(level, rows, cap, bucket, columns, self.pointer)
        counts = self.pointer[:, :, 1:].copy()
        ends = np.cumsum(counts).reshape(counts.shape)
        self.pointer[:, :, 1:] = ends
        self.pointer[:, :, 0] = ends[:, :, 0] - counts[:, :, 0]
        total = int(ends.flat[-1])
        self.place = np.empty(total, np.uint16)
        self.value = np.empty(total, np.float32)
        fill_sparse(
            weight, level, rows, cap, bucket, columns, self.pointer, self.place, self.value
        )

    def add(self, bucket: int, x: Array, out: Array) -> None:
        """out += (the weights of a bucket) x, both in tiles of images."""
        add_sparse(out.shape[2])(self.pointer[bucket], self.place, self.value, x, out)
