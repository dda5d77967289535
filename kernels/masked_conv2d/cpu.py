"""The masked convolution on the CPU: library convolutions, channels-last, of what is alive.

A filter without a kept weight is the constant act(bias) and is not convolved; an input channel that
no filter reads is not gathered.  The rest is one dense channels-last convolution a level, which on
a CPU beats any sparse one at the densities of circuits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

WORTH_GATHERING = 0.75  # part of the input channels alive below which copying them pays


def masked_conv2d_cpu(
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
    """``masked_conv2d`` for finite inputs: [T, N, O, OH, OW], channels-last in memory."""
    results = []
    for k, t in enumerate(ts):
        xt = x if x.dim() == 4 else x[k]
        results.append(_one_level(xt, weight, level > t, bias, stride, padding, dilation, groups))
        if relu:
            results[-1].relu_()
    return results[0][None] if len(results) == 1 else torch.stack(results)


def _one_level(
    x: torch.Tensor,
    weight: torch.Tensor,
    kept: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> torch.Tensor:
    masked = torch.where(kept, weight, 0.0)
    filters = kept.flatten(1).any(1)
    whole = groups > 1 or bool(filters.all())
    if groups == 1:
        channels = kept.any(0).flatten(1).any(1)
        if int(channels.sum()) < WORTH_GATHERING * len(channels):
            read = channels.nonzero()[:, 0]
            x, masked = x.index_select(1, read), masked.index_select(1, read)
    if not whole:
        alive = filters.nonzero()[:, 0]
        masked = masked.index_select(0, alive)
    x = x.contiguous(memory_format=torch.channels_last)
    masked = masked.contiguous(memory_format=torch.channels_last)
    if whole:
        return F.conv2d(x, masked, bias, stride, padding, dilation, groups)
    out = _constant(x, weight, bias, stride, padding, dilation)
    if len(alive) and x.shape[1]:
        part = None if bias is None else bias.index_select(0, alive)
        out[:, alive] = F.conv2d(x, masked, part, stride, padding, dilation)
    return out


def _constant(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """What every filter gives where no weight is kept: its bias, [N, O, OH, OW]."""
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in (0, 1)
    )
    shape = (x.shape[0], weight.shape[0], height, width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    return out.zero_() if bias is None else out.copy_(bias[:, None, None].expand(shape[1:]))
