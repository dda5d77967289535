"""What the self-test runs of `overlap`: few short masks, many as long as AlexNet's and ResNet's."""

from __future__ import annotations

from typing import Any

import torch

from circuitcore.kernels.overlap.operation import overlap_counts
from circuitcore.kernels.overlap.reference import overlap_reference
from circuitcore.kernels.trial import Trial, integers

# masks, bytes: the convolutions of AlexNet and of ResNet-50
SIZES = ((1, 1), (3, 125), (33, 2049), (8, 308_712), (3, 2_932_000))


def trials() -> list[Trial]:
    """Counts, exactly."""
    return [_trial(*sizes) for sizes in SIZES]


def _trial(masks: int, length: int) -> Trial:
    def arguments(device: torch.device) -> dict[str, Any]:
        return {"packed": integers((masks, length), 255, device)}

    return Trial(
        f"{masks} masks of {length:,} bytes",
        "uint8",
        arguments,
        lambda packed: overlap_counts(packed, impl="triton")[0],
        overlap_reference,
        length > 100_000,
    )
