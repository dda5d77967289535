"""What the self-test runs of `masked_weights`: sizes that fill no block, AlexNet's fc7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitcore.kernels.masked_weights.operation import masked_weights
from circuitcore.kernels.masked_weights.reference import masked_weights_reference
from circuitcore.kernels.trial import Trial, dtype_of, integers, normal

SIZES = ((3, 7), (31, 257), (4096, 4096))
LEVELS = 0, 3, 8


def trials() -> list[Trial]:
    """Weights, exactly."""
    return [_trial(sizes, dtype) for sizes in SIZES for dtype in ("float32", "bfloat16", "float16")]


def _trial(sizes: Sequence[int], dtype: str) -> Trial:
    def arguments(device: torch.device) -> dict[str, Any]:
        return {
            "weight": normal(sizes, device, dtype_of(dtype)),
            "level": integers(sizes, 9, device),
            "ts": torch.tensor(LEVELS, dtype=torch.int32, device=device),
        }

    def kernel(**given: torch.Tensor) -> torch.Tensor:
        return masked_weights(**given, impl="triton")

    said = f"{sizes[0]} x {sizes[1]}, {len(LEVELS)} levels"
    return Trial(said, dtype, arguments, kernel, masked_weights_reference, sizes[0] > 1000)
