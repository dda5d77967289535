"""Triton kernel of `masked_linear`: one level a program, the mask applied in registers.

Weights stand on the left, out^T = (W [level > t]) x^T, because Hopper's matrix units take only
their left operand from registers.  Masking costs by the weight, multiplying by the weight and
image: with 128 or 256 images a program the matrix units take longer than the instructions that
mask (`aot.issue`), and their products run while the next tile is masked.  Programs that read the
same weights stand side by side in the grid, so that levels share them in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded
from circuitcore.kernels.masked.tiles import DTYPES, masked_tile, uploaded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase


@triton.jit
def masked_linear_kernel(
    x, weight, level, ts, bias, out,
    N, units, width, levels, x_level, x_row, w_row, l_row,
    RELU: tl.constexpr, BIAS: tl.constexpr, SHARED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[t, n, o] = act(sum_i W[o, i] [level[o, i] > ts[t]] x[t, n, i] + bias[o])."""
    program = tl.program_id(0)
    blocks, batches = tl.cdiv(units, BM), tl.cdiv(N, BN)
    if SHARED:  # levels, then images, then rows: a block of weights is read once for all levels
        t = program % levels
        column = program // levels % batches
        row = program // levels // batches
    else:  # rows first: the input of a level is read once, the weights once a level
        row = program % blocks
        column = program // blocks % batches
        t = program // blocks // batches
    m = row * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    x += t.to(tl.int64) * x_level
    # rows and images past the end read others: no mask along these axes in the loop
    rows = (m % units).to(tl.int64)[:, None]
    images = (n % N).to(tl.int64)[None, :]
    threshold = tl.load(ts + t)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, width, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(weight + rows * w_row + k[None, :], (k < width)[None, :], other=0.0)
        byte = tl.load(level + rows * l_row + k[None, :], (k < width)[None, :], other=0)
        batch = tl.load(x + images * x_row + k[:, None], (k < width)[:, None], other=0.0)
        kept = tl.where(byte.to(tl.int32) > threshold, w, 0.0)  # a pruned NaN is not there
        sums = tl.dot(kept, batch, sums, input_precision="tf32")
    if BIAS:
        sums += tl.load(bias + m, m < units, other=0.0).to(tl.float32)[:, None]
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)  # a NaN stays
    slot = out + t.to(tl.int64) * N * units + n.to(tl.int64)[None, :] * units + m[:, None]
    tl.store(slot, sums.to(out.dtype.element_ty), (m < units)[:, None] & (n < N)[None, :])


def launch_masked(
    x: torch.Tensor, weight: torch.Tensor, level: torch.Tensor, ts: Sequence[int],
    bias: torch.Tensor | None, *, relu: bool, arch: str = "sm_90",
) -> torch.Tensor:  # fmt: skip
    """One launch for all levels; products of float32 are TF32 (exact in the interpreter)."""
    shared = x.dim() == 2
    n, o = x.shape[-2], weight.shape[0]
    tile = masked_tile(DTYPES[x.dtype], n, arch)
    weight, level, x = _rows(weight), _rows(level), _rows(x)
    out = x.new_empty(len(ts), n, o)
    programs = len(ts) * triton.cdiv(n, tile.batch) * triton.cdiv(o, tile.rows)
    launch(
        masked_linear_kernel, (programs,),
        x, weight, level, uploaded(ts, x.device), None if bias is None else bias.contiguous(), out,
        n, o, weight.shape[1], len(ts),
        0 if shared else x.stride(0), x.stride(-2), weight.stride(0), level.stride(0),
        RELU=relu, BIAS=bias is not None, SHARED=shared,
        BM=tile.rows, BN=tile.batch, BK=tile.columns,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With 16-byte rows, which loads of 16 bytes need: itself, or a copy filled up with zeros."""
    short = -tensor.shape[-1] % 16
    if short:
        return F.pad(tensor, (0, short))
    aligned = all(stride % 16 == 0 for stride in tensor.stride()[:-1])
    return tensor if tensor.stride(-1) == 1 and aligned else tensor.contiguous()


def aot_cases(arch: str) -> list[AotCase]:
    """What the launcher asks for on fc6 (shared input) and fc7 of AlexNet, at each tile."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for images in (128, 1000):
                for shared in (True, False):
                    x = torch.empty((images, 9216) if shared else (31, images, 4096), dtype=dtype)
                    weight = torch.empty(4096, x.shape[-1], dtype=dtype)
                    level = weight.to(torch.uint8)
                    launch_masked(x, weight, level, range(31), weight[:, 0], relu=True, arch=arch)
    return distinct(case_of("masked_linear", record) for record in launches)
