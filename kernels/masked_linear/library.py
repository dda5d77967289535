"""`masked_linear` by the library's products of masked weights, level by level, waiting for none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.masked.tiles import uploaded

TOGETHER = 2**26  # masked weights at a time: small layers take all their levels in one product


def masked_linear_library(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
) -> torch.Tensor:
    """``masked_linear`` for finite inputs: [T, N, O]; others may leak NaN."""
    levels = uploaded(ts, x.device)[:, None, None]
    together = max(1, TOGETHER // max(1, weight.numel()))
    out = x.new_empty(len(ts), x.shape[-2], weight.shape[0])
    for first in range(0, len(ts), together):
        some = slice(first, first + together)
        masked = torch.where(level > levels[some], weight, 0.0).mT  # [., I, O]
        xt = x.expand(len(masked), *x.shape) if x.dim() == 2 else x[some]
        if bias is None:
            torch.bmm(xt, masked, out=out[some])
        else:
            torch.baddbmm(bias, xt, masked, out=out[some])
    return out.relu_() if relu else out
