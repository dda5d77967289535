"""Numba passes of `survivors`: only imported where they run."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from circuitcore.kernels.compilers import numba_jit

Array = Any  # a numpy array; numba infers the type at the first call
prange = numba.prange
BLOCK = 64  # rows between two looks at whether all columns are hit


@numba_jit(parallel=True)
def rows_reading(matrix: Array, live: Array, found: Array) -> None:
    """found[o] = row o is not 0 in some live column; a row is left at its first hit."""
    for o in prange(matrix.shape[0]):
        for i in range(matrix.shape[1]):
            if matrix[o, i] != 0 and live[i]:
                found[o] = True
                break


@numba_jit(parallel=True)
def columns_read(matrix: Array, live: Array, found: Array) -> None:
    """found[i] = column i is not 0 in some live row; the rest is left once all columns are hit."""
    rows, columns = matrix.shape
    groups = 8  # of columns, one a thread at a time
    for g in prange(groups):
        first, last = columns * g // groups, columns * (g + 1) // groups
        hit = np.zeros(last - first, np.bool_)
        for o in range(rows):
            if live[o]:
                for i in range(last - first):
                    hit[i] |= matrix[o, first + i] != 0
            if o % BLOCK == BLOCK - 1 and hit.all():
                break
        found[first:last] = hit
