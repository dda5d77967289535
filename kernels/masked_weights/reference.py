"""The plain meaning of `masked_weights`."""

from __future__ import annotations

import torch


def masked_weights_reference(
    weight: torch.Tensor, level: torch.Tensor, ts: torch.Tensor
) -> torch.Tensor:
    """[T, *weight.shape]: a weight whose byte is not greater than t is 0, whatever it was."""
    asked = ts.view(-1, *[1] * level.dim())
    return torch.where(level > asked, weight, weight.new_zeros(()))
