"""`masked_linear` by the library's products of masked weights, level by level, waiting for none."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
    out = x.new_empty(len(ts), x.shape[-2], weight.shape[0])
    for k, t in enumerate(ts):
        masked = torch.where(level > t, weight, 0.0).T
        xt = x if x.dim() == 2 else x[k]
        if bias is None:
            torch.mm(xt, masked, out=out[k])
        else:
            torch.addmm(bias, xt, masked, out=out[k])
    return out.relu_() if relu else out
