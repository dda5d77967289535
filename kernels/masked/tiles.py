"""Tiles of the masked kernels on a GPU, and the sizes they pad to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tile:
    """One program's share: rows x batch x columns a step, levels together, warps, stages."""

    rows: int
    batch: int
    columns: int
    levels: int
    num_warps: int
    num_stages: int = 3

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.batch}x{self.columns}t{self.levels}w{self.num_warps}"

    def constexprs(self, relu: bool, precision: str) -> dict[str, Any]:
        """What a masked kernel is compiled for."""
        return {
            "RELU": relu, "PRECISION": precision,
            "T": self.levels, "BM": self.rows, "BN": self.batch, "BK": self.columns,
        }  # fmt: skip


DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def padded(ts: Sequence[int], together: int, device: torch.device) -> torch.Tensor:
    """Levels as int32, filled up to a multiple of ``together`` with 255, which keeps nothing."""
    fill = -len(ts) % together
    return uploaded([*ts, *[255] * fill], device)


def uploaded(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int32 values on ``device``; from page-locked memory, so that nobody waits for the copy."""
    host = torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
