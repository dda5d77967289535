"""The Triton kernels of `score_conv`: a weight gradient with its abs, and kernel by position.

Both are deterministic: a chunk of images writes a partial sum of its own, never an atomic.
Products are IEEE float32: scores are ranked, and the work is a small part of a sweep's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase
    from circuitcore.kernels.score_conv.library import Geometry

PROGRAMS = 512  # images are split into chunks until a launch has about this many


@dataclass(frozen=True)
class WgradTile:
    """Filters x input channels a program, positions a step."""

    filters: int
    channels: int
    positions: int = 32
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class MapTile:
    """Filters x positions of one input channel's map, taps a step."""

    filters: int
    positions: int
    taps: int
    num_warps: int = 4
    num_stages: int = 1


# operands of IEEE products are registers: larger tiles, more stages or fewer warps spill in some of
# the specialisations that the layers of `LAYERS` ask for
WGRAD_TILES = (WgradTile(64, 16, 16, 8, 2), WgradTile(64, 64, num_warps=8))
MAP_TILE = MapTile(64, 32, 16, num_warps=8)


def wgrad_tile(channels: int) -> WgradTile:
    """``channels`` of a group: few (the image's own three) or many."""
    return WGRAD_TILES[0] if channels <= 16 else WGRAD_TILES[1]


@triton.jit
def score_conv_wgrad_kernel(
    x,  # [N, H, W, I] channels-last
    g,  # [N, OH, OW, O] channels-last
    partial,  # [chunks, R * S, O, I / groups]
    N,
    per_chunk,
    H,
    W,
    OW,
    P,  # OH * OW
    channels,
    filters,
    group_channels,
    group_filters,
    S,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    abs_position,  # 1: |x| |g|
    abs_image,  # 1: abs of every image's sum
    BO: tl.constexpr,
    BI: tl.constexpr,
    BP: tl.constexpr,
):
    """Sum over a chunk's images and positions of x * g, at one tap (r, s)."""
    o_blocks = tl.cdiv(group_filters, BO)
    i_blocks = tl.cdiv(group_channels, BI)
    group = tl.program_id(0) // (o_blocks * i_blocks)
    block = tl.program_id(0) % (o_blocks * i_blocks)
    tap, chunk = tl.program_id(1), tl.program_id(2)
    r, s = tap // S, tap % S
    o = block // i_blocks * BO + tl.arange(0, BO)
    i = block % i_blocks * BI + tl.arange(0, BI)
    o_inside, i_inside = o < group_filters, i < group_channels
    at_o, at_i = group * group_filters + o, group * group_channels + i
    total = tl.zeros([BO, BI], tl.float32)
    for n in range(chunk * per_chunk, tl.minimum(N, (chunk + 1) * per_chunk)):
        x_n = x + tl.cast(n, tl.int64) * H * W * channels
        g_n = g + tl.cast(n, tl.int64) * P * filters
        image = tl.zeros([BO, BI], tl.float32)
        for start in range(0, P, BP):
            p = start + tl.arange(0, BP)
            h = p // OW * stride_h - pad_h + r * dilation_h
            w = p % OW * stride_w - pad_w + s * dilation_w
            real = p < P
            seen = real & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            gt = tl.load(
                g_n + p[None, :] * filters + at_o[:, None],
                mask=o_inside[:, None] & real[None, :],
                other=0.0,
            )  # [BO, BP]
            xt = tl.load(
                x_n + (h * W + w)[:, None] * channels + at_i[None, :],
                mask=seen[:, None] & i_inside[None, :],
                other=0.0,
            )  # [BP, BI]
            gt = tl.where(abs_position == 1, tl.abs(gt), gt)
            xt = tl.where(abs_position == 1, tl.abs(xt), xt)
            image = tl.dot(gt, xt, image, input_precision="ieee")
        total += tl.where(abs_image == 1, tl.abs(image), image)
    out = partial + (tl.cast(chunk, tl.int64) * tl.num_programs(1) + tap) * filters * group_channels
    tl.store(
        out + at_o[:, None] * group_channels + i[None, :],
        total,
        mask=o_inside[:, None] & i_inside[None, :],
    )


@triton.jit
def score_conv_map_kernel(
    weight,  # [O, I / groups, R * S]
    x,  # [N, I, H, W]
    g,  # [N, O, OH * OW]
    partial,  # [chunks, O, I / groups]
    N,
    per_chunk,
    H,
    W,
    OW,
    P,  # OH * OW
    channels,
    filters,
    group_channels,
    group_filters,
    S,
    T,  # R * S
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    BO: tl.constexpr,
    BP: tl.constexpr,
    BT: tl.constexpr,
):
    """Sum over a chunk's images and positions of |g| |tap sum of w x|, for one input channel."""
    channel, chunk = tl.program_id(1), tl.program_id(2)
    group, i = channel // group_channels, channel % group_channels
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    o_inside = o < group_filters
    at_o = group * group_filters + o
    w_o = weight + (at_o.to(tl.int64)[:, None] * group_channels + i) * T
    total = tl.zeros([BO], tl.float32)
    for n in range(chunk * per_chunk, tl.minimum(N, (chunk + 1) * per_chunk)):
        x_n = x + (tl.cast(n, tl.int64) * channels + channel) * H * W
        g_n = g + tl.cast(n, tl.int64) * filters * P
        for start in range(0, P, BP):
            p = start + tl.arange(0, BP)
            real = p < P
            a = tl.zeros([BO, BP], tl.float32)
            for first in range(0, T, BT):
                t = first + tl.arange(0, BT)
                h = (p // OW * stride_h - pad_h)[None, :] + (t // S * dilation_h)[:, None]
                w = (p % OW * stride_w - pad_w)[None, :] + (t % S * dilation_w)[:, None]
                seen = (t < T)[:, None] & real[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                patches = tl.load(x_n + h * W + w, mask=seen, other=0.0)  # [BT, BP]
                wt = tl.load(
                    w_o + t[None, :], mask=o_inside[:, None] & (t < T)[None, :], other=0.0
                )  # [BO, BT]
                a = tl.dot(wt, patches, a, input_precision="ieee")
            gt = tl.load(
                g_n + at_o[:, None] * P + p[None, :],
                mask=o_inside[:, None] & real[None, :],
                other=0.0,
            )  # [BO, BP]
            total += tl.sum(tl.abs(a) * tl.abs(gt), axis=1)
    out = partial + (tl.cast(chunk, tl.int64) * filters + at_o) * group_channels + i
    tl.store(out, total, mask=o_inside)


def _chunks(images: int, programs: int) -> tuple[int, int]:
    """(images a chunk, chunks): as few chunks as fill the device."""
    per_chunk = -(-images // min(images, -(-PROGRAMS // programs)))
    return per_chunk, -(-images // per_chunk)


def _walk_arguments(geometry: Geometry) -> tuple[int, ...]:
    return (*geometry.stride, *geometry.padding, *geometry.dilation)


def wgrad(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    *,
    abs_position: bool = False,
    abs_image: bool = False,
    tile: WgradTile | None = None,
) -> torch.Tensor:
    """Sum over images of f(sum over positions of x * g) at each tap: [O, I/groups, R, S]."""
    filters, channels, rows, columns = weight.shape
    tile = tile or wgrad_tile(channels)
    per_group = filters // geometry.groups
    blocks = -(-per_group // tile.filters) * -(-channels // tile.channels) * geometry.groups
    per_chunk, chunks = _chunks(x.shape[0], blocks * rows * columns)
    last, positions = x.permute(0, 2, 3, 1).contiguous(), g.shape[2] * g.shape[3]
    partial = torch.empty(
        chunks, rows * columns, filters, channels, dtype=torch.float32, device=x.device
    )
    launch(
        score_conv_wgrad_kernel, (blocks, rows * columns, chunks),
        last, g.permute(0, 2, 3, 1).contiguous(), partial, x.shape[0], per_chunk, *x.shape[2:],
        g.shape[3], positions, x.shape[1], filters, channels, per_group, columns,
        *_walk_arguments(geometry), int(abs_position), int(abs_image),
        BO=tile.filters, BI=tile.channels, BP=tile.positions,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    total = partial.sum(0).permute(1, 2, 0)  # [O, I/groups, R * S]
    return total.reshape(weight.shape)


def kernel_position(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    *,
    tile: MapTile | None = None,
) -> torch.Tensor:
    """Sum over images and positions of |g| |tap sum of w x|: [O, I/groups]."""
    filters, channels, rows, columns = weight.shape
    taps = rows * columns
    tile = tile or MAP_TILE
    per_group = filters // geometry.groups
    blocks = -(-per_group // tile.filters)
    per_chunk, chunks = _chunks(x.shape[0], blocks * x.shape[1])
    partial = torch.empty(chunks, filters, channels, dtype=torch.float32, device=x.device)
    launch(
        score_conv_map_kernel, (blocks, x.shape[1], chunks),
        weight.contiguous(), x.contiguous(), g.contiguous(), partial, x.shape[0], per_chunk,
        *x.shape[2:], g.shape[3], g.shape[2] * g.shape[3], x.shape[1], filters, channels,
        per_group, columns, taps, *_walk_arguments(geometry),
        BO=tile.filters, BP=tile.positions, BT=tile.taps,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return partial.sum(0)


# filters, channels of a group, side of the input, taps, stride, padding, groups: AlexNet's, VGG16's
# and ResNet-50's first layers, ordinary ones, and MobileNetV2's by channel
LAYERS = (
    (64, 3, 224, 11, 4, 2, 1), (64, 3, 224, 3, 1, 1, 1), (64, 3, 224, 7, 2, 3, 1),
    (192, 64, 27, 5, 1, 2, 1), (256, 384, 13, 3, 1, 1, 1), (128, 128, 56, 3, 2, 1, 1),
    (256, 64, 56, 1, 1, 0, 1), (32, 16, 7, 3, 1, 1, 1), (96, 1, 112, 3, 2, 1, 96),
)  # fmt: skip


def aot_cases(arch: str) -> list[AotCase]:
    """What `score_conv` launches on layers of four networks, 20 images."""
    from circuitcore.kernels.aot.case import case_of, distinct
    from circuitcore.kernels.score_conv.library import Geometry

    with recorded() as launches, torch.device("meta"):
        for filters, channels, side, taps, stride, padding, groups in LAYERS:
            geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), groups)
            out = (side + 2 * padding - taps) // stride + 1
            weight = torch.empty(filters, channels, taps, taps)
            x, g = (
                torch.empty(20, channels * groups, side, side),
                torch.empty(20, filters, out, out),
            )
            wgrad(weight, x, g, geometry, abs_position=True)
            if taps > 1:
                kernel_position(weight, x, g, geometry)
        wgrad(weight, x, g, geometry, abs_image=True)
        wgrad(weight, x, g, geometry)
    return distinct(case_of("score_conv", record) for record in launches)
