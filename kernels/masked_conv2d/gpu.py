"""Triton kernel of `masked_conv2d`: implicit GEMM over channels-last inputs, many levels a launch.

Filters stand on the left as in `masked_linear.gpu`.  A step of the inner loop takes one tap
(r, s) and a block of channels: the input position of an output is then one address an image
position, checked against the border once, and the channels are contiguous.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch
from circuitcore.kernels.masked.tiles import DTYPES, Tile, padded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

Pair = tuple[int, int]


def tile(dtype: str, precision: str, *, shared: bool, arch: str) -> Tile:
    """The tile of a launch (rows = filters, batch = output positions, columns = channels)."""
    if dtype == "fp32" and precision == "ieee":
        return Tile(64, 32, 16, 2 if shared else 1, 4)
    if dtype == "fp32" or arch == "gfx942":
        return Tile(64, 32, 32, 4 if shared else 1, 4, 2 if arch == "gfx942" else 3)
    return Tile(128, 64, 32, 4 if shared else 1, 8)


@triton.jit
def masked_conv2d_kernel(
    x, weight, level, ts, bias, out,
    P, units, C, H, W, OH, OW, groups, x_level,
    R, S, stride_h, stride_w, pad_h, pad_w, step_h, step_w,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[t, p, o] = act(sum_{r,s,c} W[o, r, s, c] [level > ts[t]] x[t, p_rs, c] + bias[o]).

    x [., N, H, W, groups * C], weight and level [groups * units, R, S, C],
    out [., P, groups * units]; p runs over the P = N * OH * OW output positions, o and c within
    a group.
    """
    blocks = tl.cdiv(units, BM)
    group = tl.program_id(1) // blocks
    m = (tl.program_id(1) % blocks) * BM + tl.arange(0, BM)
    p = tl.program_id(0) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * T
    image = p // (OH * OW)
    top = (p // OW) % OH * stride_h - pad_h
    left = p % OW * stride_w - pad_w
    channels = groups * C
    x += first.to(tl.int64) * x_level + group * C
    plane = image.to(tl.int64) * H * W  # [BN]
    filters = (group * units + m).to(tl.int64)[:, None] * (R * S * C)  # [BM, 1]
    sums = ()
    thresholds = ()
    for j in tl.static_range(T):
        sums += (tl.zeros((BM, BN), tl.float32),)
        thresholds += (tl.load(ts + first + j),)
    slices = tl.cdiv(C, BK)
    for step in range(0, R * S * slices):
        tap = step // slices
        c = step % slices * BK + tl.arange(0, BK)
        inside = (m < units)[:, None] & (c < C)[None, :]
        slot = filters + tap * C + c[None, :]
        w = tl.load(weight + slot, inside, other=0.0)  # [BM, BK]
        byte = tl.load(level + slot, inside, other=0).to(tl.int32)
        h = top + tap // S * step_h
        v = left + tap % S * step_w
        seen = (p < P) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        place = (plane + h * W + v) * channels  # [BN]
        inside = (c < C)[:, None] & seen[None, :]
        batch = tl.load(x + place[None, :] + c[:, None], inside, other=0.0)  # [BK, BN]
        added = ()
        for j in tl.static_range(T):
            kept = tl.where(byte > thresholds[j], w, 0.0)  # selected: a pruned NaN is not there
            added += (tl.dot(kept, batch, sums[j], input_precision=PRECISION),)
        sums = added
    o = group * units + m
    b = tl.load(bias + o, m < units, other=0.0).to(tl.float32)
    for j in tl.static_range(T):
        y = sums[j] + b[:, None]
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # a NaN stays
        base = ((first + j).to(tl.int64) * P + p)[None, :] * (groups * units)
        inside = (m < units)[:, None] & (p < P)[None, :]
        tl.store(out + base + o[:, None], y.to(out.dtype.element_ty), inside)


def launch_conv(
    x: torch.Tensor, weight: torch.Tensor, level: torch.Tensor, ts: Sequence[int],
    bias: torch.Tensor | None, size: Pair, *, stride: Pair, padding: Pair, dilation: Pair,
    groups: int, relu: bool, precision: str = "ieee", arch: str = "sm_90",
) -> torch.Tensor:  # fmt: skip
    """One launch for all levels; ``size`` is (OH, OW).  Inputs are copied to channels-last where
    they are not.  ``precision``: of float32 products, "ieee" or "tf32"."""
    shared = x.dim() == 4
    form = tile(DTYPES[x.dtype], precision, shared=shared, arch=arch)
    levels = padded(ts, form.levels, x.device)
    last = x.movedim(-3, -1).contiguous()
    weight = weight.permute(0, 2, 3, 1).contiguous()
    level = level.permute(0, 2, 3, 1).contiguous()
    n, (h, w) = last.shape[-4], last.shape[-3:-1]
    o, r, s, c = weight.shape
    positions = n * size[0] * size[1]
    out = x.new_empty(levels.numel(), n, *size, o)
    bias = x.new_zeros(o) if bias is None else bias.contiguous()
    per_group = o // groups
    grid = (
        triton.cdiv(positions, form.batch),  # first: only this axis takes as many
        groups * triton.cdiv(per_group, form.rows),
        levels.numel() // form.levels,
    )
    launch(
        masked_conv2d_kernel, grid,
        last, weight, level, levels, bias, out,
        positions, per_group, c, h, w, size[0], size[1], groups, 0 if shared else last.stride(0),
        r, s, *stride, *padding, *dilation,
        **form.constexprs(relu, precision), num_warps=form.num_warps, num_stages=form.num_stages,
    )  # fmt: skip
    return out[: len(ts)].movedim(-1, 2)


def aot_cases(arch: str) -> list[AotCase]:
    """Every compilation the launcher can choose."""
    from circuitcore.kernels.aot.case import AotCase

    cases = []
    kinds = (("fp32", "ieee"), ("fp32", "tf32"), ("fp16", "ieee"), ("bf16", "ieee"))
    for (dtype, precision), shared in itertools.product(kinds, (True, False)):
        form = tile(dtype, precision, shared=shared, arch=arch)
        pointers: dict[str, Any] = dict.fromkeys(("x", "weight", "bias", "out"), f"*{dtype}")
        pointers |= {"level": "*u8", "ts": "*i32"}
        sizes = ["P", "units", "C", "H", "W", "OH", "OW", "groups", "x_level", "R", "S"]
        sizes += ["stride_h", "stride_w", "pad_h", "pad_w", "step_h", "step_w"]
        cases.append(
            AotCase(
                op="masked_conv2d",
                kernel=masked_conv2d_kernel,
                config=f"{form.name}-{precision}" if dtype == "fp32" else form.name,
                dtype=dtype,
                signature={**pointers, **dict.fromkeys(sizes, "i32")},
                constexprs=form.constexprs(True, precision),
                num_warps=form.num_warps,
                num_stages=form.num_stages,
                divisible=(*pointers, "units", "C", "x_level"),
            )
        )
    return cases
