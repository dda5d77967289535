"""`masked_weights` on a GPU: bound by memory, so a program holds its weights for all levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

BLOCK = 2048  # weights a program
WARPS = 4


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["ts"])
def masked_weights_kernel(
    weight,  # [size]
    level,  # *u8 [size]
    ts,  # *i32 [T]
    out,  # [T, size]
    size,
    T,
    BD: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BD + tl.arange(0, BD)
    inside = at < size
    w = tl.load(weight + at, mask=inside, other=0.0)
    byte = tl.load(level + at, mask=inside, other=0).to(tl.int32)
    for k in range(0, T):
        kept = byte > tl.load(ts + k)
        tl.store(out + tl.cast(k, tl.int64) * size + at, tl.where(kept, w, 0.0), mask=inside)


def launch_weights(
    weight: torch.Tensor, level: torch.Tensor, ts: torch.Tensor, out: torch.Tensor
) -> None:
    """Write ``out`` [T, *weight.shape], in one launch."""
    size = weight.numel()
    if size and len(ts):
        launch(
            masked_weights_kernel, (triton.cdiv(size, BLOCK),), weight, level, ts, out, size,
            len(ts), BD=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def aot_cases(arch: str) -> list[AotCase]:
    """Layers of AlexNet whose size 16 divides, and one whose does not, in all dtypes."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        ts = torch.empty(8, dtype=torch.int32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for size in (4096, 2301):
                weight, level = torch.empty(size, dtype=dtype), torch.empty(size).byte()
                launch_weights(weight, level, ts, weight.new_empty(8, size))
    return distinct(case_of("masked_weights", record) for record in launches)
