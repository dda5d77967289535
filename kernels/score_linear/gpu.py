"""`score_linear` on a GPU: factors and weight are read once, scores written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded
from circuitcore.kernels.score_linear.factors import (
    FORM_CODES,
)

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase


@dataclass(frozen=True)
class LinearTile:
    """A program's tile of the weight: ``rows`` x ``columns``."""

    rows: int = 8
    columns: int = 256
    num_warps: int = 4


NO_FUSION = {"enable_fp_fusion": False}  # sums are rounded as the reference's are
TILE = LinearTile()  # reads a column of right once for 8 rows: 0.5 N bytes a weight from the cache


@triton.jit
def score_tile(
    weight,
    left,
    right,
    row,
    column,
    R,
    C,
    N,
    form,
):
    """One tile's weights, scores [BR, BC], row-major offsets and what lies inside."""
    inside = (row[:, None] < R) & (column[None, :] < C)  # [BR, BC]
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0)
    a = tl.load(left + row, mask=row < R, other=0.0)
    b = tl.load(right + column, mask=column < C, other=0.0)
    dot = a[:, None] * b[None, :]
    for n in range(1, N):
        a = tl.load(left + n * R + row, mask=row < R, other=0.0)
        b = tl.load(right + n * C + column, mask=column < C, other=0.0)
        dot += a[:, None] * b[None, :]
    score = dot * tl.where(form == 1, tl.abs(w), w)
    return w, tl.where(form == 3, tl.abs(score), score), at, inside


@triton.jit
def score_linear_kernel(
    weight,  # [R, C]
    left,  # [N, R]
    right,  # [N, C]
    out,  # [R, C]
    R,
    C,
    N,
    form,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    row = tl.program_id(0) // blocks * BR + tl.arange(0, BR)
    column = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    _, score, at, inside = score_tile(weight, left, right, row, column, R, C, N, form)
    tl.store(out + at, score, mask=inside)


def _launch(
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    form: str,
    tile: LinearTile = TILE,
) -> torch.Tensor:
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=weight.dtype, device=weight.device)
    grid = (-(-rows // tile.rows) * -(-columns // tile.columns),)
    launch(
        score_linear_kernel,
        grid,
        weight.contiguous(),
        left.contiguous(),
        right.contiguous(),
        out,
        rows,
        columns,
        left.shape[0],
        FORM_CODES[form],
        BR=tile.rows,
        BC=tile.columns,
        num_warps=tile.num_warps,
        **NO_FUSION,
    )
    return out


def aot_cases(arch: str) -> list[AotCase]:
    """What `score_linear` launches on AlexNet's fc6 and on a target's row, each form, 20 images."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        for rows, columns in ((4096, 9216), (1, 4096)):
            for form in FORM_CODES:
                _launch(
                    torch.empty(rows, columns),
                    torch.empty(20, rows),
                    torch.empty(20, columns),
                    form,
                )
    return distinct(case_of("score_linear", record) for record in launches)
