"""`assign_levels` by one sort: the specification of its fast versions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitcore.kernels.levels.layer import (
    Assignment,
    LayerScores,
    normalised,
    raw_scores,
)


def assign_levels_reference(
    layers: Sequence[LayerScores], counts: Sequence[int], *, ties: str = "weight"
) -> Assignment:
    """The definition: two stable sorts, |weight| then score, and the rank against the counts."""
    raw = [raw_scores(layer) for layer in layers]
    keys = torch.cat([normalised(s, layer) for s, layer in zip(raw, layers, strict=True)])
    if not bool(torch.isfinite(keys).all()):
        raise ValueError("scores are not finite")
    magnitudes = torch.cat([layer.weight.detach().float().abs().flatten() for layer in layers])
    order = torch.argsort(magnitudes, stable=True)
    order = order[torch.argsort(keys[order], stable=True)]
    cuts = torch.tensor([int(count) for count in counts], dtype=torch.int64, device=keys.device)
    if ties == "snap" and cuts.numel():
        ascending = keys[order]
        last = ascending[(cuts - 1).clamp(min=0)]
        cuts = torch.where(cuts > 0, torch.searchsorted(ascending, last, right=True), cuts)
    position = torch.arange(keys.numel(), device=keys.device)
    level = torch.empty(keys.numel(), dtype=torch.uint8, device=keys.device)
    level[order] = torch.searchsorted(cuts, position, right=True).to(torch.uint8)
    parts = level.split([layer.weight.numel() for layer in layers])
    return Assignment(
        [part.view(layer.weight.shape) for part, layer in zip(parts, layers, strict=True)],
        tuple(int(cut) for cut in cuts),
        tuple(int((s == 0).sum()) for s in raw),
    )
