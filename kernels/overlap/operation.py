"""All-pairs overlap of circuits: how many kept weights every two bit-packed masks share.

For masks A_1..A_K over B bytes (numpy packbits order: 8 weights a byte)

    intersection[i, j] = popcount(A_i AND A_j),   sizes[i] = intersection[i, i]
    union[i, j] = sizes[i] + sizes[j] - intersection[i, j],   Jaccard = intersection / union

(Andrade & Konkle 2025, overlap between circuits).  The work is K(K+1)/2 pairs x B bytes; blocks
of columns short enough for the cache make device-memory traffic K x B bytes, each mask read
once.  `circuitcore.kernels.overlap.cpu` holds the CPU loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.overlap.gpu import (
    _launch,
)
from circuitcore.kernels.overlap.reference import overlap_reference

BLOCK_BYTES = 1 << 28  # of masks held at a time: about two seconds of work on two cores


def overlap_cost(masks: int, mask_bytes: int) -> tuple[int, int]:
    """(device-memory bytes, 32-bit word operations) of `overlap_counts`."""
    return masks * mask_bytes, masks * (masks + 1) // 2 * -(-mask_bytes // 4)


def overlap_counts(packed: torch.Tensor, impl: str = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections int64 [K, K] and sizes int64 [K], in weights, of K bit-packed masks.

    ``packed`` uint8 [K, B], one mask a row; the bits that pad the last byte must be 0.
    Raises ValueError for another shape or dtype.  Masks that do not fit memory:
    `overlap_counts_mapped`.
    """
    if packed.ndim != 2 or packed.dtype != torch.uint8:
        raise ValueError(f"packed must be uint8 [K, B], got {packed.dtype} {list(packed.shape)}")
    intersection = _overlap(packed, choose(impl, packed, cpu="numba", operation="overlap"))
    return intersection, intersection.diagonal().clone()


class Row(Protocol):
    """A bit-packed mask that need not be in memory: slices of it are read."""

    dtype: Any

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def overlap_counts_mapped(
    masks: Sequence[Row] | Sequence[np.ndarray] | np.ndarray,
    *,
    memory: int = BLOCK_BYTES,
    device: str = "cpu",
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`overlap_counts` of masks left where they are: the sum of `overlap_blocks`."""
    total = torch.zeros(len(masks), len(masks), dtype=torch.int64)
    for _, counts in overlap_blocks(masks, memory=memory, device=device, impl=impl):
        total += counts
    return total, total.diagonal().clone()


def overlap_blocks(
    masks: Sequence[Row] | Sequence[np.ndarray] | np.ndarray,
    *,
    begin: int = 0,
    memory: int = BLOCK_BYTES,
    device: str = "cpu",
    impl: str = "auto",
) -> Iterator[tuple[int, torch.Tensor]]:
    """Intersections int64 [K, K] of one block of bytes after another, each with where it ends.

    ``masks``: K equally long uint8 vectors, a mapped [K, B] array or K files; bytes before
    ``begin`` are passed over.  They are read once, a block of columns at a time, so that at most
    ``memory`` bytes of them are held (and sent to ``device``).  Blocks of rows would read every
    file once per block of others instead.  Raises ValueError for masks of unequal length or
    another dtype.
    """
    if len({len(row) for row in masks}) > 1 or any(row.dtype != np.uint8 for row in masks):
        raise ValueError("masks must be uint8 and of one length")
    end = begin
    for block in _column_blocks(masks, memory, begin):
        end += block.shape[1]
        yield end, overlap_counts(torch.from_numpy(block).to(device), impl)[0].cpu()


def _column_blocks(
    masks: Sequence[Any] | np.ndarray, memory: int, begin: int = 0
) -> Iterator[np.ndarray]:
    width = max(memory // max(len(masks), 1) // 64 * 64, 64)
    length = len(masks[0]) if len(masks) else 0
    for start in range(begin, length, width):
        block = np.empty((len(masks), min(width, length - start)), np.uint8)
        for row, mask in zip(block, masks, strict=True):
            row[:] = mask[start : start + width]
        yield block


@torch.library.custom_op("circuitcore::overlap", mutates_args=())
def _overlap(packed: torch.Tensor, impl: str) -> torch.Tensor:
    if impl == "triton":
        return _launch(packed)
    if impl == "numba":
        from circuitcore.kernels.overlap.cpu import overlap_numba

        return torch.from_numpy(overlap_numba(packed.contiguous().numpy()))
    return overlap_reference(packed)


@_overlap.register_fake
def _overlap_fake(packed: torch.Tensor, impl: str) -> torch.Tensor:
    return packed.new_empty(packed.shape[0], packed.shape[0], dtype=torch.int64)
