"""`score_linear` in plain torch: the specification of its fast versions."""

from __future__ import annotations

import torch

from circuitcore.kernels.score_linear.factors import (
    FORMS,
    MAGNITUDES,
)


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
