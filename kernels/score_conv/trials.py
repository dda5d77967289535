"""What the self-test runs of `score_conv`: both kernels, groups, AlexNet's and ResNet's."""

from __future__ import annotations

from typing import Any

import torch

from circuitcore.kernels.score_conv.operation import score_conv
from circuitcore.kernels.score_conv.reference import score_conv_reference
from circuitcore.kernels.trial import Trial, normal

IMAGES = 2
# filters, channels of a group, side of the input, taps, stride, padding, groups
SMALL = ((10, 3, 9, 3, 2, 1, 1), (12, 2, 7, 3, 1, 1, 3))
REAL = ((64, 3, 224, 11, 4, 2, 1), (192, 64, 27, 5, 1, 2, 1), (128, 128, 56, 3, 2, 1, 1))
EVERY = (("position", "weight"), ("position", "kernel"), ("image", "weight"), ("signed", "weight"))


def trials() -> list[Trial]:
    """Every way that the kernels are asked for at small sizes, those of a sweep at real ones."""
    plain, grouped = SMALL
    found = [_trial(plain, *way, real=False) for way in EVERY]
    found += [_trial(grouped, *way, real=False) for way in EVERY[:2]]
    return found + [_trial(layer, *way, real=True) for layer in REAL for way in EVERY[:2]]


def _trial(layer: tuple[int, ...], magnitude: str, granularity: str, real: bool) -> Trial:
    filters, channels, side, taps, stride, padding, groups = layer
    out = (side + 2 * padding - taps) // stride + 1

    def arguments(device: torch.device) -> dict[str, Any]:
        return {
            "weight": normal((filters, channels, taps, taps), device, torch.float32),
            "x": normal((IMAGES, channels * groups, side, side), device, torch.float32),
            "g": normal((IMAGES, filters, out, out), device, torch.float32),
            "stride": (stride, stride),
            "padding": (padding, padding),
            "groups": groups,
            "magnitude": magnitude,
            "granularity": granularity,
        }

    return Trial(
        f"{filters} x {channels} x {taps} x {taps}, groups {groups}, input {side} x {side}, "
        f"{magnitude} by {granularity}",
        "float32",
        arguments,
        lambda **given: score_conv(**given, impl="triton"),
        score_conv_reference,
        real,
        additions=IMAGES * out * out,
    )
