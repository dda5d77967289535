"""`masked_linear` and `masked_chain` in plain torch: the specification of their fast versions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]


def masked_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    relu: bool,
) -> torch.Tensor:
    """The equation in plain torch, one level after the other; the specification of the rest."""
    out = []
    for k, t in enumerate(ts):
        kept = level > t
        masked = torch.where(kept, weight, 0.0)
        xt = x if x.dim() == 2 else x[k]
        finite = torch.isfinite(xt)
        y = torch.where(finite, xt, 0.0) @ masked.T
        for i in (~finite).any(0).nonzero().flatten().tolist():  # 0 * inf is not 0: by column
            reads = kept[:, i] & ~finite[:, i, None]
            y = y + torch.where(reads, xt[:, i, None] * masked[:, i], 0.0)
        y = y if bias is None else y + bias
        out.append(torch.relu(y) if relu else y)
    return torch.stack(out)


def masked_chain_reference(
    x: torch.Tensor,
    layers: Sequence[Layer],
    ts: Sequence[int],
    *,
    centres: Sequence[torch.Tensor] | None = None,
    squeeze: bool = True,
) -> torch.Tensor:
    """`masked_linear_reference` layer by layer, level by level, on inputs less their centre."""
    out = []
    for t in ts:
        h = x
        for k, (weight, level, bias, relu) in enumerate(layers):
            h = h if centres is None else centred(h, centres[k])
            h = masked_linear_reference(h, weight, level, [t], bias, relu=relu)[0]
        out.append(h)
    stacked = torch.stack(out)
    return stacked[..., 0] if squeeze and stacked.shape[-1] == 1 else stacked


def centred(x: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """``x - centre`` in the dtype of x; the difference is taken in the wider of both."""
    return (x - centre).to(x.dtype)
