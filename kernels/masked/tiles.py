"""Tiles of the masked linear kernel on a GPU, and how levels get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Tile:
    """One program's share: rows x batch x columns a step, warps, stages."""

    rows: int
    batch: int
    columns: int
    num_warps: int
    num_stages: int


def masked_tile(dtype: str, batch: int, arch: str) -> Tile:
    """The tile of a launch for ``batch`` images; none spills on any target (`budget.json`).

    256 images a program where that pads no more than 128 do, plus a twentieth: the wider tile
    masks and reads half as often.  AMD's local memory (64 KiB) and TF32 on sm_80 take 128.
    """
    wide = -(-batch // 256) * 256 <= 1.05 * (-(-batch // 128) * 128)
    half = dtype != "fp32"
    if arch.startswith("gfx"):
        return Tile(128, 128, 32, 8, 2)
    if arch == "sm_90" or arch.startswith("sm_10"):
        if wide:
            return Tile(128, 256, 64 if half else 32, 8, 3)
        return Tile(128, 128, 128, 8, 2) if half else Tile(128, 128, 32, 8, 3)
    if half:  # sm_80 and those like it, some with 99 KiB of shared memory
        return Tile(128, 256 if wide else 128, 32, 8, 3)
    return Tile(128, 128, 32, 8, 3)


def uploaded(
    values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int32
) -> torch.Tensor:
    """Numbers on ``device``; from page-locked memory, so that nobody waits for the copy."""
    host = torch.tensor(list(values), dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
