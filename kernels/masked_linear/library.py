"""`masked_linear` by the library's products of masked weights, level by level, waiting for none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.masked.tiles import uploaded
from circuitcore.kernels.masked_weights.operation import masked_weights

TOGETHER = 2**26  # masked weights at a time: small layers take all their levels in one product


def masked_linear_library(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
    impl: str = "torch",
) -> torch.Tensor:
    """``masked_linear`` for finite inputs: [T, N, O]; others may leak NaN.

    ``impl``: how weights are masked.
    """
    levels = uploaded(ts, x.device)
    weight, level = weight.contiguous(), level.contiguous()
    together = max(1, TOGETHER // max(1, weight.numel()))
    out = x.new_empty(len(ts), x.shape[-2], weight.shape[0])
    for first in range(0, len(ts), together):
        some = slice(first, first + together)
        masked = masked_weights(weight, level, levels[some], impl=impl).mT  # [., I, O]
        xt = x.expand(len(masked), *x.shape) if x.dim() == 2 else x[some]
        if bias is None:
            torch.bmm(xt, masked, out=out[some])
        else:
            torch.baddbmm(bias, xt, masked, out=out[some])
    return out.relu_() if relu else out
