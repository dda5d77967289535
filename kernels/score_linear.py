"""Activation times gradient for every weight of a Linear layer.

With x the layer's input, g the gradient of the target logit at its output and N images
(Andrade & Konkle 2025, "Weight scoring"; a weight's contribution is linearised as w * x * g):

    position, image   score[o, i] = |W[o, i]| * sum_n |g[n, o]| |x[n, i]| / N
    signed            score[o, i] =  W[o, i]  * sum_n  g[n, o]   x[n, i]  / N
    set               score[o, i] = |signed[o, i]|

A Linear layer has one position an image, so `position` and `image` are one.  The scores are a
product of two factors of N rows each, a few kilobytes: `linear_factors` gives those, and
`levels` ranks the weights from them without the scores being written anywhere.

The sum over images runs in order, each product and each sum rounded to the result's type on its
own (no fused multiply-add), so that every implementation gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.dispatch import choose

if TYPE_CHECKING:
    from circuitcore.kernels.aot import AotCase

Magnitude = Literal["position", "image", "set", "signed"]
Form = Literal["abs", "signed", "set"]
MAGNITUDES = ("position", "image", "set", "signed")
FORM_CODES = {"abs": 1, "signed": 2, "set": 3}  # 0: scores that are given
FORMS: dict[str, Form] = {"position": "abs", "image": "abs", "set": "set", "signed": "signed"}


def score_linear(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    *,
    magnitude: str = "position",
    impl: str = "auto",
) -> torch.Tensor:
    """Score every weight of a Linear layer.

    weight [O, I]; x [N, I] the layer's input; g [N, O] the gradient of the target unit's
    activation at the layer's output.  Returns [O, I] in units of the target's activation, float64
    if an argument is float64, else float32.  Raises ValueError for shapes that do not match or an
    unknown ``magnitude``.
    """
    left, right, form = linear_factors(x, g, magnitude)
    if weight.shape != (left.shape[1], right.shape[1]):
        raise ValueError(
            f"weight {tuple(weight.shape)} does not fit x {tuple(x.shape)} and g {tuple(g.shape)}"
        )
    dtype = torch.promote_types(weight.dtype, left.dtype)
    weight = weight.detach().to(dtype).contiguous()
    return _score_linear(weight, left.to(dtype), right.to(dtype), form, impl)


@torch.library.custom_op("circuitcore::score_linear", mutates_args=())
def _score_linear(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: str, impl: str
) -> torch.Tensor:
    if choose(impl, weight) == "triton":
        return _launch(weight, left, right, form)
    return score_from_factors(weight, left, right, form)


@_score_linear.register_fake
def _(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: str, impl: str
) -> torch.Tensor:
    return torch.empty_like(weight)


def linear_factors(
    x: torch.Tensor, g: torch.Tensor, magnitude: str = "position"
) -> tuple[torch.Tensor, torch.Tensor, Form]:
    """The two factors of the scores: left [N, O], right [N, I], and how W enters.

    score = f(W, sum_n left[n, o] * right[n, i]) with f = |W| * dot for form "abs", W * dot for
    "signed", |W * dot| for "set".  The factors carry the absolute values and the 1/N.
    """
    if magnitude not in FORMS:
        raise ValueError(f"magnitude={magnitude!r}: one of {', '.join(MAGNITUDES)}")
    if x.ndim != 2 or g.ndim != 2 or x.shape[0] != g.shape[0] or x.shape[0] == 0:
        raise ValueError(f"x {tuple(x.shape)} and g {tuple(g.shape)} must be [N, I] and [N, O]")
    double = torch.float64 in (x.dtype, g.dtype)
    dtype = torch.float64 if double else torch.float32
    left, right = g.detach().to(dtype) / x.shape[0], x.detach().to(dtype)
    form = FORMS[magnitude]
    if form == "abs":
        left, right = left.abs(), right.abs()
    return left.contiguous(), right.contiguous(), form


def score_linear_reference(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, *, magnitude: str = "position"
) -> torch.Tensor:
    """The definition, image by image: every product w * x * g is written out.  [O, I]."""
    if magnitude not in FORMS:
        raise ValueError(f"magnitude={magnitude!r}: one of {', '.join(MAGNITUDES)}")
    total = torch.zeros_like(weight)
    for x_n, g_n in zip(x, g, strict=True):
        contribution = weight * x_n[None, :] * g_n[:, None]
        total += contribution.abs() if FORMS[magnitude] == "abs" else contribution
    total /= x.shape[0]
    return total.abs() if magnitude == "set" else total


def score_from_factors(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: str
) -> torch.Tensor:
    """Scores [R, C] from weight [R, C], left [N, R] and right [N, C], images in order."""
    dot = left[0][:, None] * right[0][None, :]
    for n in range(1, left.shape[0]):
        dot += left[n][:, None] * right[n][None, :]
    dot *= weight.abs() if form == "abs" else weight
    return dot.abs_() if form == "set" else dot


@dataclass(frozen=True)
class LinearTile:
    """A program's tile of the weight: ``rows`` x ``columns``."""

    rows: int = 8
    columns: int = 256
    num_warps: int = 4

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}w{self.num_warps}"


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
    score_linear_kernel[grid](
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
    """Every compilation `score_linear` can launch."""
    from circuitcore.kernels.aot import AotCase

    pointers: dict[str, Any] = dict.fromkeys(("weight", "left", "right", "out"), "*fp32")
    return [
        AotCase(
            op="score_linear",
            kernel=score_linear_kernel,
            config=TILE.name,
            dtype="fp32",
            signature={**pointers, **dict.fromkeys(("R", "C", "N", "form"), "i32")},
            constexprs={"BR": TILE.rows, "BC": TILE.columns},
            num_warps=TILE.num_warps,
            num_stages=3,
            divisible=(*pointers, "R", "C"),
            options=dict(NO_FUSION),
        )
    ]
