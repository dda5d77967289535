"""A Linear layer's scores as factors of rank N: their form is where the abs stands."""

from __future__ import annotations

from typing import Literal

import torch

Magnitude = Literal["position", "image", "set", "signed"]
Form = Literal["abs", "signed", "set"]
MAGNITUDES = ("position", "image", "set", "signed")
FORM_CODES = {"abs": 1, "signed": 2, "set": 3}  # 0: scores that are given
FORMS: dict[str, Form] = {"position": "abs", "image": "abs", "set": "set", "signed": "signed"}


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


def score_from_factors(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: str
) -> torch.Tensor:
    """Scores [R, C] from weight [R, C], left [N, R] and right [N, C], images in order."""
    dot = left[0][:, None] * right[0][None, :]
    for n in range(1, left.shape[0]):
        dot += left[n][:, None] * right[n][None, :]
    dot *= weight.abs() if form == "abs" else weight
    return dot.abs_() if form == "set" else dot
