"""`first_conv` in plain torch: the specification of its fast version."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def first_conv_reference(
    pixels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    std: torch.Tensor,
    index: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    relu: bool,
) -> torch.Tensor:
    """The equation in plain torch; [N, O, OH, OW], channels-last."""
    picked = pixels if index is None else pixels[index.long()]
    precise = torch.promote_types(weight.dtype, torch.float32)
    mean, std = mean.to(precise).view(-1, 1, 1), std.to(precise).view(-1, 1, 1)
    x = ((picked.to(precise) / 255 - mean) / std).to(weight.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    out = F.conv2d(x, weight, bias, stride, padding)
    out = torch.relu_(out) if relu else out
    return out.movedim(1, -1).contiguous().movedim(-1, 1)
