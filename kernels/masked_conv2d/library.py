"""`masked_conv2d` on a GPU: the library's convolution on masked weights, and no waiting for it.

A Triton convolution that masks as it loads was written and counted, and loses to this for every
layer of AlexNet, VGG16, ResNet-50 and MobileNetV2 (docs/facts.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def masked_conv2d_library(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
) -> torch.Tensor:
    """``masked_conv2d`` for finite inputs: [T, N, O, OH, OW]; others may leak NaN."""
    results = []
    for k, t in enumerate(ts):
        masked = torch.where(level > t, weight, 0.0).contiguous(memory_format=torch.channels_last)
        xt = x if x.dim() == 4 else x[k]
        y = F.conv2d(xt, masked, bias, stride, padding, dilation, groups)
        results.append(y.relu_() if relu else y)
    return results[0][None] if len(results) == 1 else torch.stack(results)
