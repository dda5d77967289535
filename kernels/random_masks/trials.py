"""What the self-test runs of `random_masks`: small layers, none and all of one, AlexNet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitcore.kernels.random_masks.operation import random_masks
from circuitcore.kernels.random_masks.reference import random_mask_reference
from circuitcore.kernels.trial import Trial

SMALL = (7, 3), (2048, 2048), (5000, 1), (300, 0), (70_001, 12_345)  # places, kept
REAL = (16_777_216, 4_000_000), (307_200, 306_000), (4096, 77)  # fc7, conv2, the target's row


def trials() -> list[Trial]:
    """Masks, exactly."""
    return [_trial(SMALL, False), _trial(REAL, True)]


def _trial(layers: Sequence[tuple[int, int]], real: bool) -> Trial:
    words = [0x9E3779B9 * k % 2**32 for k in range(1, 2 * len(layers) + 1)]

    def arguments(device: torch.device) -> dict[str, Any]:
        return {"counts": torch.tensor([count for _, count in layers], device=device)}

    def kernel(counts: torch.Tensor) -> list[torch.Tensor]:
        return random_masks(counts, [size for size, _ in layers], words, impl="triton")

    def reference(counts: torch.Tensor) -> list[torch.Tensor]:
        return [
            random_mask_reference(size, count, words[2 * k : 2 * k + 2], counts.device)
            for k, (size, count) in enumerate(layers)
        ]

    sizes = ", ".join(f"{count:,} of {size:,}" for size, count in layers)
    return Trial(sizes, "uint8", arguments, kernel, reference, real)
