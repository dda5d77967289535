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

from typing import Literal

import torch

from circuitcore.kernels.dispatch import choose

Magnitude = Literal["position", "image", "set", "signed"]
Form = Literal["abs", "signed", "set"]
MAGNITUDES = ("position", "image", "set", "signed")
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
    weight, left, right = weight.to(dtype), left.to(dtype), right.to(dtype)
    choose(impl, weight)
    return score_from_factors(weight, left, right, form)


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
    left, right = g.to(dtype) / x.shape[0], x.to(dtype)
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
