"""Levels: which relevant weights of a stage each level of the sweep prunes.

All layers of the stage are ranked jointly; a level that says 90 % prunes exactly round(0.9 n)
weights, or at coarser granularity the nearest whole number of units.  The whole nested sweep is one
byte a weight: the weight is kept at level t iff its byte is greater than t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcore.kernels.levels.layer import normalised, raw_scores
from circuitcore.kernels.levels.operation import assign_levels, assign_unit_levels
from circuitcore.kernels.spans import span
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.scoring.ensemble import ensemble
from circuitcore.scoring.scores import Contribution, UnitScores, layer_scores, overflow


@dataclass(frozen=True)
class StageLevels:
    """One category's nested sweep of one stage.

    ``levels[layer]``: uint8, shaped like the layer's relevant weights; ``pruned[t]``: weights
    pruned at level t, of ``relevant``; ``tied_zero``: fraction of relevant weights whose score is
    exactly 0.
    """

    stage: str
    levels: dict[str, Tensor]
    pruned: tuple[int, ...]
    relevant: int
    tied_zero: float

    def kept(self, t: int) -> dict[str, Tensor]:
        """Boolean masks of the weights kept at level ``t``."""
        return {name: level > t for name, level in self.levels.items()}

    def fraction(self, t: int) -> float:
        """Pruned fraction reached at level ``t``."""
        return self.pruned[t] / self.relevant


def stage_levels(
    network: Network,
    stage: str,
    found: Mapping[str, Contribution],
    unit: int,
    options: Options,
    prune: Sequence[int] | None = None,
) -> StageLevels:
    """Score the stage's layers for target unit ``unit`` and give every weight its level byte.

    ``prune``: weights that each level prunes, from dense to sparse; else those of the options'
    grid.
    Cost: each pass over the scores reads the weights once (4 bytes each) and recomputes them from
    their factors; one byte a weight is written.
    """
    names = network.layers(stage)
    together = None
    if options.criterion == "ensemble":
        together = ensemble(network, names, found, unit, options)
        scores = together.scores
    else:
        scores = [layer_scores(network, name, found[name], unit, options) for name in names]
    relevant = sum(math.prod(s.shape) for s in scores)
    targets = list(prune or (round(part * relevant) for part in options.grid(stage)))
    if all(s.per_unit == 1 for s in scores):
        try:
            with span("kernel", "assign_levels"):
                assigned = assign_levels(
                    [s.layer for s in scores], targets, ties=options.ties, impl=options.impl
                )
        except ValueError:
            for name, each in zip(names, scores, strict=True):
                if not bool(torch.isfinite(raw_scores(each.layer)).all()):
                    raise overflow(name) from None
            raise
        levels = [v.view(s.shape) for v, s in zip(assigned.levels, scores, strict=True)]
        pruned, zero = assigned.counts, sum(assigned.zero)
    else:
        levels, pruned, zero = _unit_levels(scores, targets, options.ties)
    zero = zero if together is None else together.zero
    return StageLevels(
        stage, dict(zip(names, levels, strict=True)), pruned, relevant, zero / max(relevant, 1)
    )


def _unit_levels(
    scores: list[UnitScores], targets: list[int], ties: str
) -> tuple[list[Tensor], tuple[int, ...], int]:
    raw = [raw_scores(s.layer) for s in scores]
    ranked = [normalised(r, s.layer) for r, s in zip(raw, scores, strict=True)]
    keys = [s.layer.weight.abs().flatten() for s in scores]
    sizes = [torch.full((r.numel(),), s.per_unit) for r, s in zip(raw, scores, strict=True)]
    assigned, pruned = assign_unit_levels(
        torch.cat(ranked), torch.cat(keys), torch.cat(sizes), targets, ties=ties
    )
    parts = assigned.split([r.numel() for r in raw])
    levels = [
        part.view(-1, 1).expand(-1, s.per_unit).reshape(s.shape).contiguous()
        for part, s in zip(parts, scores, strict=True)
    ]
    zero = sum(int((r == 0).sum()) * s.per_unit for r, s in zip(raw, scores, strict=True))
    return levels, pruned, zero
