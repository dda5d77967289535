"""What the self-test runs of `levels`: scores by factors and given, with ties and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitcore.kernels.levels.layer import LayerScores, raw_scores
from circuitcore.kernels.levels.operation import assign_levels, score_range
from circuitcore.kernels.levels.reference import assign_levels_reference
from circuitcore.kernels.trial import Trial, normal

# rows and columns of linear layers, a convolution's weight: AlexNet's fc7, target's row and conv2;
# ResNet-50's row and a convolution of its
Sizes = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]
SMALL: Sizes = (((30, 101), (1, 30)), (8, 3, 5, 5))
REAL: tuple[Sizes, ...] = (
    (((4096, 4096), (1, 4096)), (192, 64, 5, 5)),
    (((1, 2048),), (512, 512, 3, 3)),
)
IMAGES = 20


def trials() -> list[Trial]:
    """Level bytes exactly, and the range of scores."""
    found = [_assigned(*SMALL, ties, False) for ties in ("weight", "snap")]
    found += [_assigned(*sizes, "weight", True) for sizes in REAL]
    return [*found, _ranged(*SMALL[0][0], False), _ranged(4096, 9216, True)]


def _factored(rows: int, columns: int, device: torch.device) -> LayerScores:
    """A layer of whose outputs a third read nothing: their scores tie at 0."""
    left = normal((IMAGES, rows), device, torch.float32).abs()
    left[:, ::3] = 0
    right = normal((IMAGES, columns), device, torch.float32).relu()
    return LayerScores(normal((rows, columns), device, torch.float32), left=left, right=right)


def _assigned(
    linear: Sequence[tuple[int, int]], conv: Sequence[int], ties: str, real: bool
) -> Trial:
    def arguments(device: torch.device) -> dict[str, Any]:
        weight = normal(conv, device, torch.float32)
        given = LayerScores(weight, normal(conv, device, torch.float32).round(), offset=-1.0)
        layers = [*(_factored(*size, device) for size in linear), given]
        total = sum(layer.weight.numel() for layer in layers)
        counts = [0, *(total - int(total * 0.5**k) for k in range(1, 16))]
        return {"layers": layers, "counts": counts, "ties": ties}

    def kernel(**given: Any) -> list[torch.Tensor]:
        return _numbers(assign_levels(**given, impl="triton"))

    sizes = ", ".join(" x ".join(map(str, size)) for size in (*linear, conv))
    return Trial(
        f"{sizes}, 16 levels, ties by {ties}",
        "uint8",
        arguments,
        kernel,
        lambda **given: _numbers(assign_levels_reference(**given)),
        real,
    )


def _numbers(found: Any) -> list[torch.Tensor]:
    return [*found.levels, torch.tensor(found.counts), torch.tensor(found.zero)]


def _ranged(rows: int, columns: int, real: bool) -> Trial:
    def reference(layer: LayerScores) -> torch.Tensor:
        raw = raw_scores(layer).double()
        return torch.stack([raw.min(), raw.max(), raw.abs().sum() / raw.numel()])

    def kernel(layer: LayerScores) -> torch.Tensor:
        low, high, total = score_range(layer, impl="triton")
        return torch.tensor([low, high, total / layer.weight.numel()], dtype=torch.float64)

    return Trial(
        f"range of {rows} x {columns}, {IMAGES} images",
        "float32",
        lambda device: {"layer": _factored(rows, columns, device)},
        kernel,
        reference,
        real,
    )
