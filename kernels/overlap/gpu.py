"""`overlap_counts` on a GPU: one program a block of pairs, popcounts of AND in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase


@dataclass(frozen=True)
class OverlapConfig:
    """Tile: ``rows_i`` x ``rows_j`` pairs, ``words`` 32-bit words of each a step."""

    rows_i: int = 4
    rows_j: int = 4
    words: int = 512
    num_warps: int = 4


CONFIG = OverlapConfig()
BLOCK_BYTES = 32 << 20  # of masks in one launch: stays in the L2 cache while all pairs read it


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
        launch(
            overlap_pairs_kernel,
            (len(pairs), parts),
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


def aot_cases(arch: str) -> list[AotCase]:
    """What the launcher asks for: 64 circuits of AlexNet, an odd number, a few short ones."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        for masks, weights in ((64, 2_469_696), (61, 2_469_696), (3, 1000)):
            _launch(torch.empty(masks, -(-weights // 8), dtype=torch.uint8))
    return distinct(case_of("overlap", record) for record in launches)
