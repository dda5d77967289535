"""A network as its library made it, before it is traced."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from circuitcore.inputs.pixels import Preprocessing


@dataclass(frozen=True)
class Source:
    """A module in eval mode on the CPU with its weights, and what these say of themselves.

    ``sha256``: of the weights as stored, where that is not as the module holds them.  ``size``:
    height and width of an input, where the preprocessing leaves the size of images as it is.
    ``notes``: what the user should know, a line each.
    """

    name: str
    module: nn.Module
    categories: tuple[str, ...] | None
    preprocessing: Preprocessing
    sha256: str | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def transformed_input(module: nn.Module, own: Preprocessing) -> Preprocessing:
    """The preprocessing with what the network does to its input first (``transform_input``).

    torchvision's GoogLeNet and Inception with pretrained weights scale and shift each channel; that
    is one with the normalisation: (x - mean) / std · a + b = (x - (mean - b std / a)) / (std / a).
    """
    if not getattr(module, "transform_input", False):
        return own
    with torch.no_grad():
        ends = torch.stack([torch.full((3, 1, 1), v, dtype=torch.float64) for v in (0.0, 1.0)])
        zero, one = module._transform_input(ends).flatten(1).tolist()  # type: ignore[operator]
    scales = [b - a for a, b in zip(zero, one, strict=True)]
    mean = [
        m - shift * s / scale
        for m, s, shift, scale in zip(own.mean, own.std, zero, scales, strict=True)
    ]
    std = [s / scale for s, scale in zip(own.std, scales, strict=True)]
    return replace(own, mean=tuple(round(m, 9) for m in mean), std=tuple(round(s, 9) for s in std))


def stored_categories(metadata: dict[str, Any], outputs: int) -> tuple[str, ...] | None:
    """Names of the output units in a safetensors file's metadata, if they are there and fit."""
    try:
        names = json.loads(metadata["categories"])
        return tuple(map(str, names)) if len(names) == outputs else None
    except (KeyError, TypeError, ValueError):
        return None
