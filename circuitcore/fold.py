"""A batch norm folded into the convolution before it, for running a network only.

In eval mode a batch norm is y = (x - mean) / sqrt(var + eps) · scale + shift, one affine map a
channel, so after a convolution it is a factor on the weights' rows and another bias.  Scores,
levels and masks belong to the convolution's own weights: a factor on a row leaves a · g of a weight
as it is, but not |w|, which breaks ties, so folded weights are never scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what convolution, then batch norm, do.

    ``weight`` [out, in / groups, kh, kw]; ``bias`` [out], or a map [out, H, W] that is added to the
    convolution's result, or None; ``norm``: mean, var, scale, shift, each [out].  Exact but for the
    order of rounding: the factors are taken in float64 and rounded once.  A pruned weight stays 0,
    and a row of them leaves the bias alone: (bias - mean) · factor + shift.
    """
    mean, var, scale, shift = (each.double() for each in norm)
    factor = scale * (var + eps).rsqrt()
    before = torch.zeros_like(mean) if bias is None else bias.double()
    by_channel = (-1, *(1 for _ in before.shape[1:]))
    moved = (before - mean.view(by_channel)) * factor.view(by_channel) + shift.view(by_channel)
    rows = weight.double() * factor.view(-1, 1, 1, 1)
    return torch.empty_like(weight).copy_(rows), moved.to(weight.dtype)
