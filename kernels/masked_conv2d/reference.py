"""`masked_conv2d` in plain torch: the specification of its fast versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

Pair = tuple[int, int]


# parameters are the operation's: the specification can be read and called alone
def masked_conv2d_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool,
) -> torch.Tensor:
    """The equation in plain torch, one level after the other; the specification of the rest."""
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip
    out = []
    for k, t in enumerate(ts):
        kept = level > t
        masked = torch.where(kept, weight, 0.0)
        xt = x if x.dim() == 4 else x[k]
        finite = torch.isfinite(xt)
        y = F.conv2d(torch.where(finite, xt, 0.0), masked, None, **options)
        if not bool(finite.all()):
            y = y + _non_finite_part(xt, masked, kept, **options)
        y = y if bias is None else y + bias[:, None, None]
        out.append(torch.relu(y) if relu else y)
    return torch.stack(out)


def _non_finite_part(
    x: torch.Tensor, masked: torch.Tensor, kept: torch.Tensor, **options: Any
) -> torch.Tensor:
    """What the NaN and infinite inputs add through kept weights: 0, an infinity or NaN.

    A product is +inf, -inf or NaN; counting how many of each reach an output by convolutions of
    0/1 maps keeps 0 * inf of the pruned weights out of the sum.
    """

    def reached(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv2d(inputs.to(x.dtype), weights.to(x.dtype), None, **options) > 0

    positive, negative, nan = x == torch.inf, x == -torch.inf, torch.isnan(x)
    above, below = kept & (masked > 0), kept & (masked < 0)
    void = kept & ((masked == 0) | torch.isnan(masked))  # inf * 0 and inf * NaN
    plus = reached(positive, above) | reached(negative, below)
    minus = reached(positive, below) | reached(negative, above)
    bad = reached(nan, kept) | reached(positive | negative, void) | (plus & minus)
    part = torch.zeros(plus.shape, dtype=x.dtype, device=x.device)
    part = part.masked_fill(plus, torch.inf).masked_fill(minus, -torch.inf)
    return part.masked_fill(bad, torch.nan)
