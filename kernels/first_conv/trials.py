"""What the self-test runs of `first_conv`: a small image, AlexNet's and ResNet's first layers."""

from __future__ import annotations

from typing import Any

import torch

from circuitcore.kernels.first_conv.operation import first_conv
from circuitcore.kernels.first_conv.reference import first_conv_reference
from circuitcore.kernels.trial import Trial, dtype_of, integers, normal

# taps, stride, padding, side of the image, filters
LAYERS = ((3, 1, 1, 13, 5), (11, 4, 2, 224, 64), (7, 2, 3, 224, 64))


def trials() -> list[Trial]:
    """Every layer in every dtype, images picked by an index."""
    return [
        _trial(dtype, *layer) for dtype in ("float32", "bfloat16", "float16") for layer in LAYERS
    ]


def _trial(dtype: str, taps: int, stride: int, padding: int, side: int, filters: int) -> Trial:
    def arguments(device: torch.device) -> dict[str, Any]:
        made, few = dtype_of(dtype), torch.float32
        return {
            "pixels": integers((6, 3, side, side), 255, device),
            "weight": normal((filters, 3, taps, taps), device, made) / taps,
            "bias": normal((filters,), device, made),
            "mean": normal((3,), device, few).abs() / 4,
            "std": normal((3,), device, few).abs() / 4 + 0.1,
            "index": torch.tensor([5, 0, 3], device=device),
            "stride": (stride, stride),
            "padding": (padding, padding),
            "relu": True,
        }

    return Trial(
        f"{filters} filters of {taps} x {taps}, stride {stride}, images of {side} x {side}",
        dtype,
        arguments,
        lambda **given: first_conv(**given, impl="triton"),
        first_conv_reference,
        side == 224,
    )
