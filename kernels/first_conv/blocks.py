"""A strided convolution of few channels as one of many: blocks of b x b pixels become channels.

With j = oh * stride + r a row of the padded image, b a divisor of the stride and r = b * q + i,

    j = b * (oh * stride / b + q) + i

so that a filter of R taps over C channels at ``stride`` is one of ceil(R / b) taps over b * b * C
channels at stride / b.  Matrix units take channels in eights (fours for float32): three filled up
to eight cost 2.7 times what is needed, AlexNet's 48 (b = 4) 1.19 times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Blocks:
    """``side`` b; ``channels`` b * b * C filled up; ``taps`` and ``size`` (high, wide) in blocks,
    of a filter and of the image that all outputs read; ``stride`` in blocks."""

    side: int
    channels: int
    taps: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]

    @property
    def fan_in(self) -> int:
        """Multiply-adds of one output."""
        return self.channels * self.taps[0] * self.taps[1]


def blocks(
    weight_size: tuple[int, int, int], out: tuple[int, int], stride: tuple[int, int], item: int
) -> Blocks:
    """The blocks of least multiply-adds for filters [C, R, S], output size ``out``, and numbers of
    ``item`` bytes; the smaller side where two cost the same."""
    channels, *taps = weight_size
    least = 4 if item >= 4 else 8
    found = []
    for side in range(1, min(stride) + 1):
        if stride[0] % side or stride[1] % side:
            continue
        high, wide = (-(-t // side) for t in taps)
        step = (stride[0] // side, stride[1] // side)
        size = ((out[0] - 1) * step[0] + high, (out[1] - 1) * step[1] + wide)
        filled = -(-side * side * channels // least) * least
        found.append(Blocks(side, filled, (high, wide), size, step))
    return min(found, key=lambda form: form.fan_in)


def blocked_weight(weight: torch.Tensor, form: Blocks) -> torch.Tensor:
    """[O, C, R, S] as [O, channels, *taps], channels-last: channel (i * b + j) * C + c is pixel
    (i, j) of a block."""
    units, channels, high, wide = weight.shape
    b, (q, p) = form.side, form.taps
    weight = F.pad(weight, (0, p * b - wide, 0, q * b - high))
    weight = weight.view(units, channels, q, b, p, b).permute(0, 3, 5, 1, 2, 4)
    weight = weight.reshape(units, b * b * channels, q, p)
    weight = F.pad(weight, (0, 0, 0, 0, 0, form.channels - weight.shape[1]))
    return weight.contiguous(memory_format=torch.channels_last)
