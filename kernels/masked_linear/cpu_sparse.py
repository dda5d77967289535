"""Sparse x dense products for the masked Linear layers on the CPU.

Weights of several buckets (the level differences of a sweep), each ordered by column block and
row, times a batch in tiles of images.  Batch is innermost: a weight multiplies a contiguous run.

Numba keeps compiled code on disk and looks at this file alone to know whether it still holds, so
what the compiled functions rest on is either here or an argument.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from circuitcore.kernels.compilers import numba_jit
from circuitcore.kernels.masked.cost import COLUMN_BLOCK

prange = numba.prange
Array = Any  # a numpy array; numba infers the type at the first call
LANES = 16
ROWS = 1024


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
        count_sparse(level, rows, cap, bucket, columns, self.pointer, COLUMN_BLOCK)
        counts = self.pointer[:, :, 1:].copy()
        self.place, self.value = np.empty(0, np.uint16), np.empty(0, np.float32)
        if counts.size == 0:
            return
        ends = np.cumsum(counts).reshape(counts.shape)
        self.pointer[:, :, 1:] = ends
        self.pointer[:, :, 0] = ends[:, :, 0] - counts[:, :, 0]
        total = int(ends.flat[-1])
        self.place = np.empty(total, np.uint16)
        self.value = np.empty(total, np.float32)
        fill_sparse(
            weight,
            level,
            rows,
            cap,
            bucket,
            columns,
            self.pointer,
            self.place,
            self.value,
            COLUMN_BLOCK,
        )

    def nonzeros(self, bucket: int) -> int:
        """Weights in a bucket."""
        first, last = self.pointer[bucket, :, :1], self.pointer[bucket, :, -1:]
        return int((last - first).sum())

    def add(self, bucket: int, x: Array, out: Array) -> None:
        """out += (the weights of a bucket) x, both in tiles of images."""
        add_sparse(self.pointer[bucket], self.place, self.value, x, out, COLUMN_BLOCK)


@numba_jit(parallel=True)
def count_sparse(
    level: Array, rows: Array, cap: Array, bucket: Array, columns: Array, pointer: Array, block: int
) -> None:
    """pointer[k, b, r + 1] = nonzeros of bucket k, column block b, row rows[r].

    A weight's bucket is bucket[min(level, cap[row])], 255 for none; block b holds
    columns[b * block : (b + 1) * block].
    """
    for r in prange(rows.size):
        o = rows[r]
        for c in range(columns.size):
            k = bucket[min(level[o, columns[c]], cap[o])]
            if k != 255:
                pointer[k, c // block, r + 1] += 1


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
    block: int,
) -> None:
    """Write each nonzero where `count_sparse`, summed up, says: ordered by bucket, block, row."""
    for r in prange(rows.size):
        o = rows[r]
        at = pointer[:, :, r].copy()
        for b in range(pointer.shape[1]):
            first = b * block
            for c in range(min(block, columns.size - first)):
                i = columns[first + c]
                k = bucket[min(level[o, i], cap[o])]
                if k != 255:
                    p = at[k, b]
                    at[k, b] = p + 1
                    place[p] = c
                    value[p] = weight[o, i]


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


def _row_adder(width: int) -> Any:
    """The numba intrinsic out[0 : width] += sum_k value[k] * x[place[k], 0 : width].

    Called with addresses (out float32, x float32 [., width], place uint16, value float32) and the
    number of nonzeros, at least one.  ``width`` is a multiple of 16.  A plain numba loop loads and
    stores the row's sums at every nonzero; here they stay in registers from the first nonzero to
    the last.  LLVM legalises the 16-lane vectors for the processor (AVX-512, AVX2, NEON).
    """

    @intrinsic
    def add(typing_context: Any, out: Any, x: Any, place: Any, value: Any, count: Any) -> Any:
        signature = types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.int64)
        return signature, lambda context, builder, _, args: _emit(context, builder, args, width)

    return add


# Module-level names: a compiled function that held one in its closure would not be found on disk.
add_16, add_32, add_64, add_128 = map(_row_adder, (16, 32, 64, 128))


@numba_jit(parallel=True)
def add_sparse(
    pointer: Array, place: Array, value: Array, x: Array, out: Array, block: int
) -> None:
    """out[n, r, j] += sum over the nonzeros of row r of value * x[n, column, j].

    pointer [blocks, R + 1], x [N / width, C, width], out [N / width, R, width], the width as
    `cost.batch_tile` has it.  A tile of x (``block`` inputs) stays in the second-level cache while
    all rows read it.
    """
    tiles, rows, width = out.shape
    columns = x.shape[1]
    parts = max(1 if tiles > 3 else 4, rows // ROWS)  # the sums of a part stay in cache too
    x_at, out_at = np.uintp(x.ctypes.data), np.uintp(out.ctypes.data)
    place_at, value_at = np.uintp(place.ctypes.data), np.uintp(value.ctypes.data)
    line = np.uintp(4 * width)
    for task in prange(tiles * parts):
        n, part = task // parts, task % parts
        for b in range(pointer.shape[0]):
            x_block = x_at + np.uintp(n * columns + b * block) * line
            if pointer[b, 0] == pointer[b, rows]:
                continue
            for r in range(rows * part // parts, rows * (part + 1) // parts):
                p, count = pointer[b, r], pointer[b, r + 1] - pointer[b, r]
                if count == 0:
                    continue
                sums = out_at + np.uintp(n * rows + r) * line
                places, values = place_at + np.uintp(2 * p), value_at + np.uintp(4 * p)
                if width == 128:
                    add_128(sums, x_block, places, values, count)
                elif width == 64:
                    add_64(sums, x_block, places, values, count)
                elif width == 32:
                    add_32(sums, x_block, places, values, count)
                else:
                    add_16(sums, x_block, places, values, count)


def _emit(context: Any, builder: ir.IRBuilder, args: Any, width: int) -> ir.Value:
    i16, i32, i64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(ir.FloatType(), LANES)
    out, x, place, value, count = args
    out = builder.inttoptr(out, vector.as_pointer())
    x = builder.inttoptr(x, vector.as_pointer())
    place = builder.inttoptr(place, i16.as_pointer())
    value = builder.inttoptr(value, ir.FloatType().as_pointer())
    vectors = range(width // LANES)

    slots = [builder.gep(out, [i64(j)]) for j in vectors]
    start = [builder.load(slot, align=4) for slot in slots]
    before = builder.block
    loop, done = builder.append_basic_block("nonzeros"), builder.append_basic_block("done")
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(i64)
    k.add_incoming(i64(0), before)
    sums = [builder.phi(vector) for _ in vectors]
    column = builder.zext(builder.load(builder.gep(place, [k])), i64)
    first = builder.mul(column, i64(len(vectors)))
    scalar = builder.load(builder.gep(value, [k]), align=4)
    undefined = ir.Constant(vector, ir.Undefined)
    lane0 = builder.insert_element(undefined, scalar, i32(0))
    zeros = ir.Constant(ir.VectorType(i32, LANES), [0] * LANES)
    weight = builder.shuffle_vector(lane0, undefined, zeros)
    after = []
    for j in vectors:
        batch = builder.load(builder.gep(x, [builder.add(first, i64(j))]), align=4)
        product = builder.fmul(weight, batch, flags=("contract",))
        after.append(builder.fadd(sums[j], product, flags=("contract",)))
        sums[j].add_incoming(start[j], before)
        sums[j].add_incoming(after[j], loop)
    following = builder.add(k, i64(1))
    k.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

    builder.position_at_end(done)
    for slot, total in zip(slots, after, strict=True):
        builder.store(total, slot, align=4)
    return context.get_dummy_value()
