"""All-pairs overlap of circuits: how many kept weights every two bit-packed masks share.

For masks A_1..A_K over B bytes (numpy packbits order: 8 weights a byte)

    intersection[i, j] = popcount(A_i AND A_j),   sizes[i] = intersection[i, i]
    union[i, j] = sizes[i] + sizes[j] - intersection[i, j],   Jaccard = intersection / union

(Andrade & Konkle 2025, overlap between circuits).  The work is K(K+1)/2 pairs x B bytes; blocks
of columns short enough for the cache make device-memory traffic K x B bytes, each mask read
once.  `circuitcore.kernels.overlap_cpu` holds the CPU loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.dispatch import choose


@dataclass(frozen=True)
class OverlapConfig:
    """Tile: ``rows_i`` x ``rows_j`` pairs, ``words`` 32-bit words of each a step."""

    rows_i: int = 4
    rows_j: int = 4
    words: int = 512
    num_warps: int = 4

    @property
    def name(self) -> str:
        return f"{self.rows_i}x{self.rows_j}x{self.words}w{self.num_warps}"


CONFIG = OverlapConfig()
BLOCK_BYTES = 32 << 20  # of masks in one launch: stays in the L2 cache while all pairs read it


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
    intersection = _overlap(packed, choose(impl, packed, cpu="numba"))
    return intersection, intersection.diagonal().clone()


def overlap_counts_mapped(
    masks: Sequence[np.ndarray],
    *,
    memory: int = 1 << 28,
    device: str = "cpu",
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`overlap_counts` of masks left where they are: a mapped [K, B] array, or K mapped files.

    ``masks``: K equally long uint8 vectors.  They are read once, a block of columns at a time,
    so that at most ``memory`` bytes of them are held (and sent to ``device``).  Blocks of rows
    would read every file once per block of others instead.  Raises ValueError for masks of
    unequal length or another dtype.
    """
    if len({len(row) for row in masks}) > 1 or any(row.dtype != np.uint8 for row in masks):
        raise ValueError("masks must be uint8 and of one length")
    total = torch.zeros(len(masks), len(masks), dtype=torch.int64)
    for block in _column_blocks(masks, memory):
        total += overlap_counts(torch.from_numpy(block).to(device), impl)[0].cpu()
    return total, total.diagonal().clone()


def _column_blocks(masks: Sequence[np.ndarray], memory: int) -> Iterator[np.ndarray]:
    width = max(memory // max(len(masks), 1) // 64 * 64, 64)
    for start in range(0, len(masks[0]) if len(masks) else 0, width):
        yield np.stack([row[start : start + width] for row in masks])


@torch.library.custom_op("circuitcore::overlap", mutates_args=())
def _overlap(packed: torch.Tensor, impl: str) -> torch.Tensor:
    if impl == "triton":
        return _launch(packed)
    if impl == "numba":
        from circuitcore.kernels.overlap_cpu import overlap_numba

        return torch.from_numpy(overlap_numba(packed.contiguous().numpy()))
    return overlap_reference(packed)


@_overlap.register_fake
def _overlap_fake(packed: torch.Tensor, impl: str) -> torch.Tensor:
    return packed.new_empty(packed.shape[0], packed.shape[0], dtype=torch.int64)


def overlap_reference(packed: torch.Tensor) -> torch.Tensor:
    """One row against all, popcount by table."""
    table = torch.tensor([byte.bit_count() for byte in range(256)], device=packed.device)
    rows = [table[(row & packed).long()].sum(1) for row in packed]
    return torch.stack(rows) if rows else packed.new_zeros(0, 0, dtype=torch.int64)


@triton.jit
def overlap_pairs_kernel(
    words,  # *u32 [K, W], W a multiple of the step
    tile_i,  # *i32 [tiles]
    tile_j,  # *i32 [tiles]
    partial,  # *i32 [splits, K, K]
    K,
    W,
    per_split,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BW: tl.constexpr,
):
    i = tl.load(tile_i + tl.program_id(0)) * BI + tl.arange(0, BI)
    j = tl.load(tile_j + tl.program_id(0)) * BJ + tl.arange(0, BJ)
    w = tl.program_id(1) * per_split + tl.arange(0, BW)
    # rows past the end read the last row again; their counts are not stored
    at_i = words + tl.minimum(i, K - 1).to(tl.int64)[:, None] * W + w[None, :]
    at_j = words + tl.minimum(j, K - 1).to(tl.int64)[:, None] * W + w[None, :]
    count = tl.zeros([BI, BJ, BW], tl.uint32)
    for _ in range(0, per_split, BW):
        both = tl.load(at_i)[:, None, :] & tl.load(at_j)[None, :, :]  # [BI, BJ, BW]
        # the textbook bit count: LLVM makes it one popc (NVIDIA) or v_bcnt (AMD)
        both = both - ((both >> 1) & 0x55555555)
        both = (both & 0x33333333) + ((both >> 2) & 0x33333333)
        both = (both + (both >> 4)) & 0x0F0F0F0F
        count += (both * 0x01010101) >> 24
        at_i += BW
        at_j += BW
    out = partial + (tl.program_id(1) * K + i[:, None]) * K + j[None, :]
    inside = (i[:, None] < K) & (j[None, :] < K)
    tl.store(out, tl.sum(count.to(tl.int32), axis=2), mask=inside)


def _launch(packed: torch.Tensor, config: OverlapConfig = CONFIG) -> torch.Tensor:
    """One launch a block of columns; each writes partial counts that integers add up exactly."""
    masks, length = packed.shape
    device = packed.device
    total = torch.zeros(masks, masks, dtype=torch.int64, device=device)
    pairs = [
        (i, j)
        for i in range(-(-masks // config.rows_i))
        for j in range(-(-masks // config.rows_j))
        if (j + 1) * config.rows_j > i * config.rows_i  # reaches the diagonal or above
    ]
    if not pairs or not length:
        return total
    tile_i, tile_j = torch.tensor(pairs, dtype=torch.int32, device=device).T.contiguous()
    step = config.words * 4  # bytes
    splits = max(1, _programs_wanted(device) // len(pairs))
    width = max(BLOCK_BYTES // masks // step, 1) * step
    for start in range(0, length, width):
        block = packed[:, start : start + width]
        parts = min(splits, -(-block.shape[1] // step))
        per_split = -(-block.shape[1] // (parts * step)) * step
        # zero bytes up to whole steps: no masks in the loop, every load 16 bytes and aligned
        block = torch.nn.functional.pad(block, (0, parts * per_split - block.shape[1]))
        words = block.contiguous().view(torch.int32)
        partial = torch.zeros(parts, masks, masks, dtype=torch.int32, device=device)
        overlap_pairs_kernel[(len(pairs), parts)](
            words.view(torch.uint32),
            tile_i,
            tile_j,
            partial,
            masks,
            words.shape[1],
            per_split // 4,
            BI=config.rows_i,
            BJ=config.rows_j,
            BW=config.words,
            num_warps=config.num_warps,
        )
        total += partial.sum(0, dtype=torch.int64)
    upper = total.triu()
    return upper + upper.triu(1).T


def _programs_wanted(device: torch.device) -> int:
    """Enough programs for every multiprocessor to hide its loads; one where there is none."""
    if device.type != "cuda":
        return 3  # the interpreter: enough to prove that splits add up
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def aot_cases(arch: str) -> list[Any]:
    """What the launcher can ask for, for the ahead-of-time proof."""
    from circuitcore.kernels.aot import AotCase

    pointers = {"words": "*u32", "tile_i": "*i32", "tile_j": "*i32", "partial": "*i32"}
    return [
        AotCase(
            op="overlap",
            kernel=overlap_pairs_kernel,
            config=CONFIG.name,
            dtype="u32",
            signature={**pointers, "K": "i32", "W": "i32", "per_split": "i32"},
            constexprs={"BI": CONFIG.rows_i, "BJ": CONFIG.rows_j, "BW": CONFIG.words},
            num_warps=CONFIG.num_warps,
            num_stages=3,
            divisible=(*pointers, "W", "per_split"),
        )
    ]
