"""`overlap_counts` in plain torch: the specification of its fast versions."""

from __future__ import annotations

import torch


def overlap_reference(packed: torch.Tensor) -> torch.Tensor:
    """One row against all, popcount by table."""
    table = torch.tensor([byte.bit_count() for byte in range(256)], device=packed.device)
    rows = [table[(row & packed).long()].sum(1) for row in packed]
    return torch.stack(rows) if rows else packed.new_zeros(0, 0, dtype=torch.int64)
