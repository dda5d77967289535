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

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.score_linear.factors import (
    linear_factors,
    score_from_factors,
)
from circuitcore.kernels.score_linear.gpu import (
    _launch,
)


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
    if choose(impl, weight, operation="score_linear") == "triton":
        return _launch(weight, left, right, form)
    return score_from_factors(weight, left, right, form)


@_score_linear.register_fake
def _(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, form: str, impl: str
) -> torch.Tensor:
    return torch.empty_like(weight)
