"""What masked products cost on a CPU, from their shapes alone, and which path is cheapest.

Every function here is pure: no tensors, no clocks, no device.  A GPU's: `masked.gpu_cost`.
"""

from __future__ import annotations

# Costs in dense multiply-adds.  The ratios were measured on AVX-512 processors; they decide
# between two right answers, so a processor with others loses a little time and nothing else.

SPARSE_MULTIPLY_ADD = 4.0  # a sparse x dense multiply-add over one inside a library product
SEGMENT = 1000.0  # starting the run of nonzeros of one row and column block on one batch tile
GATHERED_WEIGHT = 30.0  # reading, masking and placing one weight of a compacted matrix
SPARSE_WEIGHT = 120.0  # reading, masking and placing one nonzero of a sparse matrix
COLUMN_BLOCK = 256  # inputs whose batch tile is read from the second-level cache


def batch_tile(batch: int) -> int:
    """Images that a sparse product takes together: 16, 32, 64 or 128."""
    return next((width for width in (16, 32, 64) if batch <= width), 128)


def dense_cost(rows: int, columns: int, batch: int) -> float:
    """Gather a compacted matrix and multiply it with the library."""
    return float(rows) * columns * (batch + GATHERED_WEIGHT)


def sparse_cost(rows: int, columns: int, nonzeros: int, batch: int) -> float:
    """Gather the nonzeros by row and column block, and add them up tile by tile."""
    width = batch_tile(batch)
    tiles = -(-batch // width)
    segments = min(nonzeros, rows * -(-columns // COLUMN_BLOCK))
    each = SPARSE_MULTIPLY_ADD * tiles * width + SPARSE_WEIGHT
    return float(nonzeros) * each + float(segments) * tiles * SEGMENT


def cpu_path(rows: int, columns: int, nonzeros: int, batch: int, *, sparse: bool = True) -> str:
    """``"dense"`` or ``"sparse"``, whichever costs less (``sparse=False``: there is none)."""
    if sparse and sparse_cost(rows, columns, nonzeros, batch) < dense_cost(rows, columns, batch):
        return "sparse"
    return "dense"
