"""What level selection works on: one layer's scores, and how all layers are ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from circuitcore.kernels.masked.tiles import uploaded
from circuitcore.kernels.score_linear.factors import Form, score_from_factors

MAX_LEVELS = 255
Ties = Literal["weight", "snap"]


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One layer's scores: given (``values``) or as factors (``left``, ``right``, ``form``).

    weight: any shape, seen as [R, C] with R its first dimension.  values: as many scores as
    weights, in the same order.  left [N, R], right [N, C]: scores = f(weight, left^T right), see
    `score_linear.linear_factors`.  All are used as float32.  norm: float32 [2] that stands for
    offset and scale where they are known on the device only.
    """

    weight: torch.Tensor
    values: torch.Tensor | None = None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    form: Form = "abs"
    offset: float = 0.0
    scale: float = 1.0
    norm: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.values is not None:
            if self.left is not None or self.right is not None:
                raise ValueError("give values, or left and right, not both")
            if self.values.numel() != self.weight.numel():
                raise ValueError(
                    f"values {tuple(self.values.shape)} for weight {tuple(self.weight.shape)}"
                )
            return
        if self.left is None or self.right is None:
            raise ValueError("give values, or both left and right")
        rows = self.weight.shape[0] if self.weight.ndim else 1
        images, columns = self.right.shape
        if tuple(self.left.shape) != (images, rows) or rows * columns != self.weight.numel():
            raise ValueError(
                f"left {tuple(self.left.shape)} and right {tuple(self.right.shape)} for weight "
                f"{tuple(self.weight.shape)}: [N, R] and [N, C] expected"
            )
        if self.form not in ("abs", "signed", "set"):
            raise ValueError(f"form={self.form!r}: abs, signed or set")


@dataclass(frozen=True, eq=False)
class Assignment:
    """levels: a uint8 tensor like each weight; counts: weights pruned at each level, as reached;
    zero: raw scores that are exactly 0, one number a layer."""

    levels: list[torch.Tensor]
    counts: tuple[int, ...]
    zero: tuple[int, ...]


def check_counts(counts: Sequence[int], total: int) -> None:
    """Raise ValueError unless counts are at most 255 ascending numbers from 0 to ``total``."""
    if len(counts) > MAX_LEVELS:
        raise ValueError(f"{len(counts)} levels: at most {MAX_LEVELS} fit a byte")
    numbers = [int(count) for count in counts]
    if numbers != sorted(numbers):
        raise ValueError("counts must ascend, from the densest level to the sparsest")
    if numbers and (numbers[0] < 0 or numbers[-1] > total):
        raise ValueError(f"counts must lie between 0 and the {total} weights there are")


def raw_scores(layer: LayerScores) -> torch.Tensor:
    """The layer's scores, float32, flat."""
    if layer.values is not None:
        return layer.values.detach().float().flatten()
    assert layer.left is not None and layer.right is not None
    weight = layer.weight.detach().float().reshape(layer.left.shape[1], -1)
    left, right = layer.left.detach().float(), layer.right.detach().float()
    return score_from_factors(weight, left, right, layer.form).flatten()


def normalised(raw: torch.Tensor, layer: LayerScores) -> torch.Tensor:
    """(raw - offset) * scale, each step rounded to float32; -0.0 becomes 0.0."""
    offset, scale = normalisation(layer)
    return (raw - offset) * scale + 0.0


def normalisation(layer: LayerScores) -> torch.Tensor:
    """Offset and scale, float32 [2], on the layer's device; nobody waits for them."""
    if layer.norm is not None:
        return layer.norm
    return uploaded([layer.offset, layer.scale], layer.weight.device, torch.float32)
