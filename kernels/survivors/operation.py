"""Which units a weight matrix lets through: rows that read something alive, columns that are read.

    rows_reading(W, live)[o] = any_i (W[o, i] != 0 and live[i])
    columns_read(W, live)[i] = any_o (W[o, i] != 0 and live[o])

Compaction (`network.compact.compaction`) asks this of every layer at every level.  On a CPU a
row is read until its first hit and the columns until all are hit, so that most of a large matrix is
never read; otherwise torch compares all of it.
"""

from __future__ import annotations

import torch

from circuitcore.kernels.compilers import use_torch_threads


def _early_exit(matrix: torch.Tensor) -> bool:
    few = matrix.dtype in (torch.float32, torch.bool)  # each dtype is seconds of compiling
    return few and matrix.device.type == "cpu" and matrix.numel() > 0


def rows_reading(matrix: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Bool [R]: rows of ``matrix`` [R, C] (any dtype) that are not 0 in a column ``live`` [C]."""
    if not _early_exit(matrix):
        return (matrix.ne(0) & live).any(1)
    from circuitcore.kernels.survivors import cpu

    use_torch_threads()
    found = torch.zeros(matrix.shape[0], dtype=torch.bool)
    cpu.rows_reading(matrix.numpy(), live.numpy(), found.numpy())
    return found


def columns_read(matrix: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Bool [C]: columns of ``matrix`` [R, C] (any dtype) that are not 0 in a row ``live`` [R]."""
    if not _early_exit(matrix):
        return (matrix.ne(0) & live[:, None]).any(0)
    from circuitcore.kernels.survivors import cpu

    use_torch_threads()
    found = torch.zeros(matrix.shape[1], dtype=torch.bool)
    cpu.columns_read(matrix.numpy(), live.numpy(), found.numpy())
    return found
