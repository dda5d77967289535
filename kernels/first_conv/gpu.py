"""Triton kernel of `first_conv`: bytes to normalised blocks of pixels, in one pass over both.

It picks the images, normalises, pads, and makes channels of the pixels of a block (`blocks`), which
is what the library's convolution then reads at the rate of matrix units.  Convolving in the same
kernel was counted and left: it normalises a byte anew for every tap that reads it, and takes 27
instructions for each (docs/facts.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.first_conv.blocks import Blocks, blocked_weight, blocks
from circuitcore.kernels.launch import launch, recorded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

ELEMENTS, WARPS = 1024, 4  # of the result a program


@triton.jit
def first_conv_blocks_kernel(
    pixels, index, mean, std, out,
    H, W, pad_h, pad_w, row, total,
    C: tl.constexpr, SIDE: tl.constexpr, CHANNELS: tl.constexpr, PICK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[n, y, x, (i * b + j) * C + c]: normalised pixel (y * b + i - pad_h, x * b + j - pad_w) of
    plane c of image index[n], 0 outside it.

    pixels uint8 [., C, H, W]; out [N, ., row / CHANNELS, CHANNELS], ``total`` elements an image.
    """
    pieces = tl.cdiv(total, BLOCK)
    n = tl.program_id(0) // pieces
    e = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)
    image = n.to(tl.int64)
    if PICK:
        image = tl.load(index + n).to(tl.int64)
    channel = e % CHANNELS
    pixel = channel // C
    c = channel % C
    h = e // row * SIDE + pixel // SIDE - pad_h
    v = e % row // CHANNELS * SIDE + pixel % SIDE - pad_w
    inside = (e < total) & (pixel < SIDE * SIDE) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
    byte = tl.load(pixels + image * (C * H * W) + ((c * H + h) * W + v), inside, other=0)
    value = (byte.to(tl.float32) * (1.0 / 255.0) - tl.load(mean + c)) / tl.load(std + c)
    value = tl.where(inside, value, 0.0).to(out.dtype.element_ty)
    tl.store(out + n.to(tl.int64) * total + e, value, e < total)


def normalised_blocks(
    pixels: torch.Tensor, index: torch.Tensor | None, mean: torch.Tensor, std: torch.Tensor,
    padding: tuple[int, int], form: Blocks, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """[N, channels, *size] of ``form``, channels-last, in one launch."""
    n = len(pixels) if index is None else len(index)
    out = torch.empty(n, *form.size, form.channels, dtype=dtype, device=pixels.device)
    row = form.size[1] * form.channels
    total = form.size[0] * row
    launch(
        first_conv_blocks_kernel, (n * triton.cdiv(total, ELEMENTS),),
        pixels.contiguous(), index, mean, std, out, *pixels.shape[2:], *padding, row, total,
        C=pixels.shape[1], SIDE=form.side, CHANNELS=form.channels, PICK=index is not None,
        BLOCK=ELEMENTS, num_warps=WARPS,
    )  # fmt: skip
    return out.movedim(-1, 1)


def first_conv_gpu(
    pixels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mean: torch.Tensor,
    std: torch.Tensor, index: torch.Tensor | None, stride: tuple[int, int],
    padding: tuple[int, int], size: tuple[int, int], relu: bool,
) -> torch.Tensor:  # fmt: skip
    """[N, O, OH, OW], channels-last; ``size`` is (OH, OW).  Waits for nothing."""
    channels, high, wide = weight.shape[1:]
    form = blocks((channels, high, wide), size, stride, weight.element_size())
    x = normalised_blocks(
        pixels, index, mean.contiguous(), std.contiguous(), padding, form, weight.dtype
    )
    out = F.conv2d(x, blocked_weight(weight, form), bias, form.stride)
    out = torch.relu_(out) if relu else out
    return out.movedim(1, -1).contiguous().movedim(-1, 1)


# taps along a side, stride, padding: AlexNet's, VGG16's, ResNet's and MobileNetV2's first layers
FIRST_LAYERS = ((11, 4, 2), (3, 1, 1), (7, 2, 3), (3, 2, 1))


def aot_cases(arch: str) -> list[AotCase]:
    """What the launcher asks for on 224-pixel images of four networks, by an index and without."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        pixels = torch.empty(512, 3, 224, 224, dtype=torch.uint8)
        mean = torch.empty(3)
        for dtype in (torch.float32, torch.bfloat16):
            for taps, stride, padding in FIRST_LAYERS:
                out = ((224 + 2 * padding - taps) // stride + 1,) * 2
                form = blocks((3, taps, taps), out, (stride, stride), dtype.itemsize)
                index = torch.empty(512, dtype=torch.int64)
                normalised_blocks(pixels, index, mean, mean, (padding, padding), form, dtype)
        normalised_blocks(pixels, None, mean, mean, (padding, padding), form, dtype)
    return distinct(case_of("first_conv", record) for record in launches)
