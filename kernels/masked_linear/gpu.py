"""Triton kernels of `masked_linear`: plain (several levels a program) and prefix-packed.

Weights stand on the left, out^T = (W [level > t]) x^T, so that the masked tile goes from the
registers it is masked in straight to the matrix units (Hopper's take only their left operand from
registers).  A program holds the sums of several levels as a tuple of accumulators: weights,
levels and a shared input are read once for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch
from circuitcore.kernels.masked.cost import TILE_LEVELS
from circuitcore.kernels.masked.tiles import DTYPES, Tile, padded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase


def tile(variant: str, dtype: str, precision: str, *, shared: bool, arch: str) -> Tile:
    """The tile of a launch: none of these spills on any target (`budget.json`).

    Levels go together where they share their input.  "ieee" products of float32 run on the
    ordinary units, whose operands take registers, so their tiles are smaller.
    """
    together = (TILE_LEVELS if variant == "plain" else 2) if shared else 1
    if dtype == "fp32" and precision == "ieee":
        return Tile(64, 32, 16, min(2, together), 4)
    if dtype == "fp32" or arch == "gfx942":
        return Tile(64, 32, 32, together, 4, 2 if arch == "gfx942" else 3)
    return Tile(128, 64, 32 if together > 2 else 64, together, 8)


@triton.jit
def masked_linear_plain_kernel(
    x, weight, level, ts, bias, out,
    N, units, width, x_level, x_row, w_row, l_row,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[t, n, o] = act(sum_i W[o, i] [level[o, i] > ts[t]] x[t, n, i] + bias[o])."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * T
    x += first.to(tl.int64) * x_level
    rows = m.to(tl.int64)[:, None]
    images = n.to(tl.int64)[None, :]
    sums = ()
    thresholds = ()
    for j in tl.static_range(T):
        sums += (tl.zeros((BM, BN), tl.float32),)
        thresholds += (tl.load(ts + first + j),)
    for start in range(0, width, BK):
        k = start + tl.arange(0, BK)
        inside = (m < units)[:, None] & (k < width)[None, :]
        w = tl.load(weight + rows * w_row + k[None, :], inside, other=0.0)  # [BM, BK]
        byte = tl.load(level + rows * l_row + k[None, :], inside, other=0).to(tl.int32)
        inside = (k < width)[:, None] & (n < N)[None, :]
        batch = tl.load(x + images * x_row + k[:, None], inside, other=0.0)  # [BK, BN]
        added = ()
        for j in tl.static_range(T):
            kept = tl.where(byte > thresholds[j], w, 0.0)  # selected: a pruned NaN is not there
            added += (tl.dot(kept, batch, sums[j], input_precision=PRECISION),)
        sums = added
    b = tl.load(bias + m, m < units, other=0.0).to(tl.float32)
    for j in tl.static_range(T):
        y = sums[j] + b[:, None]
        if RELU:
            y = tl.where(y < 0, 0.0, y)  # a NaN stays
        slot = out + (first + j).to(tl.int64) * N * units + images * units + rows
        tl.store(slot, y.to(out.dtype.element_ty), (m < units)[:, None] & (n < N)[None, :])


@triton.jit
def masked_linear_packed_kernel(
    x, weight, level, order, prefix, ts, bias, out,
    N, units, width, x_level, x_column, levels,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same from packed panels of BM rows: only the columns a panel still reads at a level.

    weight and level are [P * BM, width], a panel's columns sorted by its highest level; order
    [P, width] names them, prefix [P, levels] counts those read at each level.  x is [width, N] at
    a level.
    """
    panel = tl.program_id(0)
    m = panel * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(2) * T
    x += first.to(tl.int64) * x_level
    order += panel.to(tl.int64) * width
    rows = m.to(tl.int64)[:, None]
    images = n.to(tl.int64)[None, :]
    sums = ()
    thresholds = ()
    for j in tl.static_range(T):
        sums += (tl.zeros((BM, BN), tl.float32),)
        thresholds += (tl.load(ts + first + j),)
    length = tl.load(prefix + panel * levels + first)  # levels ascend: the first reads most
    for start in range(0, length, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(
            weight + rows * width + k[None, :], (k < length)[None, :], other=0.0
        )  # [BM, BK]
        byte = tl.load(level + rows * width + k[None, :], (k < length)[None, :], other=0).to(
            tl.int32
        )
        column = tl.load(order + k, k < length, other=0).to(tl.int64)
        inside = (k < length)[:, None] & (n < N)[None, :]
        batch = tl.load(x + column[:, None] * x_column + images, inside, other=0.0)  # [BK, BN]
        added = ()
        for j in tl.static_range(T):
            kept = tl.where(byte > thresholds[j], w, 0.0)
            added += (tl.dot(kept, batch, sums[j], input_precision=PRECISION),)
        sums = added
    b = tl.load(bias + m, m < units, other=0.0).to(tl.float32)
    for j in tl.static_range(T):
        y = sums[j] + b[:, None]
        if RELU:
            y = tl.where(y < 0, 0.0, y)
        slot = out + (first + j).to(tl.int64) * N * units + images * units + rows
        tl.store(slot, y.to(out.dtype.element_ty), (m < units)[:, None] & (n < N)[None, :])


def launch_plain(
    x: torch.Tensor, weight: torch.Tensor, level: torch.Tensor, ts: Sequence[int],
    bias: torch.Tensor | None, *, relu: bool, precision: str = "ieee", arch: str = "sm_90",
) -> torch.Tensor:  # fmt: skip
    """One launch for all levels.  ``precision``: of float32 products, "ieee" or "tf32"."""
    shared = x.dim() == 2
    form = tile("plain", DTYPES[x.dtype], precision, shared=shared, arch=arch)
    levels = padded(ts, form.levels, x.device)
    (n, i), o = x.shape[-2:], weight.shape[0]
    weight, level, x = _rows(weight), _rows(level), _rows(x)
    out = x.new_empty(levels.numel(), n, o)
    bias = x.new_zeros(o) if bias is None else bias.contiguous()
    grid = (triton.cdiv(o, form.rows), triton.cdiv(n, form.batch), levels.numel() // form.levels)
    launch(
        masked_linear_plain_kernel, grid,
        x, weight, level, levels, bias, out, n, o, i,
        0 if shared else x.stride(0), x.stride(-2), weight.stride(0), level.stride(0),
        **form.constexprs(relu, precision), num_warps=form.num_warps, num_stages=form.num_stages,
    )  # fmt: skip
    return out[: len(ts)]


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its last axis is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@dataclass(frozen=True)
class Packed:
    """Weights in panels of rows, each panel's columns sorted by its highest level, densest first.

    weight, level [P * panel, I]; order int32 [P, I] names the columns; highest uint8 [P, I] is
    the level below which a panel reads them.
    """

    weight: torch.Tensor
    level: torch.Tensor
    order: torch.Tensor
    highest: torch.Tensor
    rows: int


def pack(weight: torch.Tensor, level: torch.Tensor, panel: int) -> Packed:
    """Pack once for a whole sweep: reads and writes weight and level once."""
    rows, columns = weight.shape
    short = -rows % panel
    weight = torch.nn.functional.pad(weight, (0, 0, 0, short))
    level = torch.nn.functional.pad(level, (0, 0, 0, short))
    panels = level.view(-1, panel, columns)
    highest, order = panels.amax(1).sort(dim=1, descending=True, stable=True)
    index = order[:, None, :].expand_as(panels)
    return Packed(
        weight.view(-1, panel, columns).gather(2, index).view(-1, columns),
        panels.gather(2, index).view(-1, columns),
        order.int(),
        highest,
        rows,
    )


def launch_packed(
    x: torch.Tensor, packed: Packed, ts: Sequence[int], bias: torch.Tensor | None, *,
    relu: bool, precision: str = "ieee", arch: str = "sm_90",
) -> torch.Tensor:  # fmt: skip
    """One launch for all levels; neighbouring levels share a program where they share x."""
    shared = x.dim() == 2
    form = tile("packed", DTYPES[x.dtype], precision, shared=shared, arch=arch)
    ascending = sorted(range(len(ts)), key=lambda k: ts[k])
    levels = padded([ts[k] for k in ascending], form.levels, x.device)
    if not shared:
        x = x[torch.tensor(ascending, device=x.device)]
    columns = x.transpose(-1, -2).contiguous()  # [I, N] at a level: a column is a run of images
    (n, i), o = x.shape[-2:], packed.rows
    prefix = (packed.highest[:, None, :] > levels[None, :, None]).sum(2, dtype=torch.int32)
    out = x.new_empty(levels.numel(), n, o)
    bias = x.new_zeros(o) if bias is None else bias.contiguous()
    panels = packed.order.shape[0]
    grid = (panels, triton.cdiv(n, form.batch), levels.numel() // form.levels)
    launch(
        masked_linear_packed_kernel, grid,
        columns, packed.weight, packed.level, packed.order, prefix, levels, bias, out, n, o, i,
        0 if shared else columns.stride(0), n, levels.numel(),
        **form.constexprs(relu, precision), num_warps=form.num_warps, num_stages=form.num_stages,
    )  # fmt: skip
    back = sorted(range(len(ts)), key=lambda k: ascending[k])
    return out[torch.tensor(back, device=x.device)]


def aot_cases(arch: str) -> list[AotCase]:
    """Every compilation the two launchers can choose."""
    from circuitcore.kernels.aot.case import AotCase

    cases = []
    for variant, kernel in (
        ("plain", masked_linear_plain_kernel),
        ("packed", masked_linear_packed_kernel),
    ):
        for dtype in ("fp32", "fp16", "bf16"):
            for shared, precision in itertools.product(
                (True, False), ("ieee", "tf32") if dtype == "fp32" else ("ieee",)
            ):
                form = tile(variant, dtype, precision, shared=shared, arch=arch)
                pointers: dict[str, Any] = {
                    "x": f"*{dtype}", "weight": f"*{dtype}", "bias": f"*{dtype}",
                    "out": f"*{dtype}", "level": "*u8", "ts": "*i32",
                }  # fmt: skip
                sizes = ["N", "units", "width", "x_level"]
                if variant == "plain":
                    sizes += ["x_row", "w_row", "l_row"]
                else:
                    pointers |= {"order": "*i32", "prefix": "*i32"}
                    sizes += ["x_column", "levels"]
                named = f"{form.name}-{precision}" if dtype == "fp32" else form.name
                cases.append(
                    AotCase(
                        op="masked_linear",
                        kernel=kernel,
                        config=named,
                        dtype=dtype,
                        signature={**pointers, **dict.fromkeys(sizes, "i32")},
                        constexprs=form.constexprs(True, precision),
                        num_warps=form.num_warps,
                        num_stages=form.num_stages,
                        divisible=(*pointers, *(s for s in sizes if s != "levels")),
                    )
                )
    return cases
