"""numba half of `overlap`: only imported where it runs."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from circuitcore.kernels.compilers import numba_jit

WORDS = 512  # of 8 bytes a block: 4 KB a mask
ROWS = 64  # masks of a tile: 256 KB, in the L2 cache


@intrinsic
def _bit_count(context: Any, value: Any) -> Any:
    """The processor's bit count (vpopcntq, popcnt, cnt), whichever LLVM finds best."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_popcount: Any = _bit_count  # called as _popcount(word): numba adds the typing context


@numba_jit(parallel=True)
def _count(packed: Any, words: int, out: Any, threads: int) -> None:
    """Adds the upper triangle of the first ``words`` 8-byte words of each row to ``out``."""
    masks = packed.shape[0]
    blocks = (words + WORDS - 1) // WORDS
    partial = np.zeros((threads, masks, masks), np.int64)
    for thread in prange(threads):
        for block in range(thread, blocks, threads):
            start, stop = block * WORDS * 8, min((block + 1) * WORDS, words) * 8
            for tile in range(0, masks, ROWS):
                for i in range(0, min(tile + ROWS, masks), 2):
                    i1 = min(i + 1, masks - 1)  # past the end: counted again, not stored
                    a0 = packed[i, start:stop].view(np.uint64)
                    a1 = packed[i1, start:stop].view(np.uint64)
                    for j in range(max(tile, i // 4 * 4), min(tile + ROWS, masks), 4):
                        j1, j2 = min(j + 1, masks - 1), min(j + 2, masks - 1)
                        j3 = min(j + 3, masks - 1)
                        b0 = packed[j, start:stop].view(np.uint64)
                        b1 = packed[j1, start:stop].view(np.uint64)
                        b2 = packed[j2, start:stop].view(np.uint64)
                        b3 = packed[j3, start:stop].view(np.uint64)
                        # 2 x 4 pairs at once: 6 loads for 8 ANDs
                        c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.uint64(0)
                        for w in range(a0.size):
                            x, y = a0[w], a1[w]
                            c0 += _popcount(x & b0[w])
                            c1 += _popcount(x & b1[w])
                            c2 += _popcount(x & b2[w])
                            c3 += _popcount(x & b3[w])
                            d0 += _popcount(y & b0[w])
                            d1 += _popcount(y & b1[w])
                            d2 += _popcount(y & b2[w])
                            d3 += _popcount(y & b3[w])
                        for column, c, d in ((0, c0, d0), (1, c1, d1), (2, c2, d2), (3, c3, d3)):
                            if j + column < masks:
                                partial[thread, i, j + column] += np.int64(c)
                                if i + 1 < masks:
                                    partial[thread, i + 1, j + column] += np.int64(d)
    for thread in range(threads):
        out += partial[thread]


def overlap_numba(packed: np.ndarray) -> np.ndarray:
    """Intersections int64 [K, K] of uint8 [K, B]."""
    masks, length = packed.shape
    threads = numba.get_num_threads()  # inside _count it would forbid the on-disk cache
    counts = np.zeros((masks, masks), np.int64)
    _count(packed, length // 8, counts, threads)
    if length % 8:
        tail = np.zeros((masks, 8), np.uint8)
        tail[:, : length % 8] = packed[:, length // 8 * 8 :]
        _count(tail, 1, counts, threads)
    upper = np.triu(counts)
    return upper + np.triu(upper, 1).T
