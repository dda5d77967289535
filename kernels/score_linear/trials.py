"""What the self-test runs of `score_linear`: every magnitude, AlexNet's and ResNet's layers."""

from __future__ import annotations

from typing import Any

import torch

from circuitcore.kernels.score_linear.factors import MAGNITUDES
from circuitcore.kernels.score_linear.operation import score_linear
from circuitcore.kernels.score_linear.reference import score_linear_reference
from circuitcore.kernels.trial import Trial, normal

# rows, columns, images: AlexNet's fc6 and its target's row, ResNet-50's
REAL = ((4096, 9216, 20), (1, 4096, 20), (1, 2048, 20))


def trials() -> list[Trial]:
    """Scores are float32."""
    small = [_trial(17, 300, 3, magnitude, False) for magnitude in MAGNITUDES]
    return small + [_trial(*sizes, "position", True) for sizes in REAL]


def _trial(rows: int, columns: int, images: int, magnitude: str, real: bool) -> Trial:
    def arguments(device: torch.device) -> dict[str, Any]:
        shapes = {"weight": (rows, columns), "x": (images, columns), "g": (images, rows)}
        made = {name: normal(shape, device, torch.float32) for name, shape in shapes.items()}
        return {**made, "magnitude": magnitude}

    return Trial(
        f"{rows} x {columns}, {images} images, {magnitude}",
        "float32",
        arguments,
        lambda **given: score_linear(**given, impl="triton"),
        score_linear_reference,
        real,
    )
