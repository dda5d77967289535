"""Stability of scores: do twice as many scoring images rank the weights the same way?

Spearman's rank correlation of a stage's normalised scores from the first k and from the first 2k
scoring images of a category, k = 1, 2, 4, 8, ... as far as there are images (Andrade & Konkle 2025
found 4 to be the fewest that give a stable order).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.inputs.categories import select
from circuitcore.inputs.read import InHand, read_inputs
from circuitcore.kernels.levels.layer import normalised, raw_scores
from circuitcore.machine.device import machine
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.ensemble import ensemble
from circuitcore.scoring.scores import layer_scores

SAMPLE = 1_000_000  # weights a stage that are ranked; more changes the third digit at most


class StabilityRow(BaseModel):
    """Rank correlation of one stage's scores from ``images`` and from ``twice`` as many images."""

    model_config = ConfigDict(frozen=True)

    category: str
    stage: str
    images: int
    twice: int
    spearman: float


def stability(
    options: Options, wanted: Sequence[str | int], progress: Progress, given: InHand | None = None
) -> list[StabilityRow]:
    """Rank stability of the wanted categories' scores with growing scoring sets.

    ``--scoring-images`` is the largest set: 4 compares 1 with 2 and 2 with 4.  Raises InputError
    below 2 images, and what `read_inputs` raises.
    """
    if options.scoring_images < 2:
        raise InputError("stability compares k with 2k images: --scoring-images must be 2 or more")
    device = machine(options).device
    inputs = read_inputs(options, given)
    network = inputs.model.network.to(device)
    counts = [1]
    while 2 * counts[-1] <= options.scoring_images:
        counts.append(2 * counts[-1])
    chosen = select(inputs.categories, wanted)
    inputs.tell(progress)
    rows = []
    progress.start("stability", len(chosen))
    for category in chosen:
        images = inputs.scoring_images(category.index, device)
        before: dict[str, Tensor] = {}
        for count in counts:
            now = _scores(network, images[:count], category.index, options)
            for stage, scores in now.items():
                if stage in before:
                    rho = spearmanr(before[stage].numpy(), scores.numpy()).statistic
                    rows.append(
                        StabilityRow(
                            category=category.name,
                            stage=stage,
                            images=count // 2,
                            twice=count,
                            spearman=float(rho),
                        )  # fmt: skip
                    )
            before = now
        progress.advance(1, category.name)
    return rows


def _scores(network: Network, images: Tensor, unit: int, options: Options) -> dict[str, Tensor]:
    """Normalised scores by stage, float32 on the CPU; of very many units an even sample."""
    found = scored_by(network, images, unit, options)
    stages = {}
    for stage in network.stages:
        parts, names = [], network.layers(stage)
        if options.criterion == "ensemble":
            parts, names = ensemble(network, names, found, unit, options).means, []
        for name in names:
            scores = layer_scores(network, name, found[name], unit, options)
            parts.append(normalised(raw_scores(scores.layer), scores.layer))
        if parts:
            every = torch.cat(parts)
            stages[stage] = every[:: max(1, -(-every.numel() // SAMPLE))].cpu()
    return stages
