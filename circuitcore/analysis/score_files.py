"""The scoring step alone: scores of each category's weights, written out for inspection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import save
from torch import Tensor

from circuitcore.inputs.categories import select
from circuitcore.inputs.read import InHand, read_inputs
from circuitcore.kernels.levels.layer import raw_scores
from circuitcore.machine.device import machine
from circuitcore.machine.files import write_atomically
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.runs.paths import file_stem
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.ensemble import ensemble
from circuitcore.scoring.scores import layer_scores


class ScoreRow(BaseModel):
    """Scores of one layer for one category: ``units`` scores, ``zero`` of them exactly 0.

    In units of the target's activation, before normalisation (``--criterion ensemble``: the mean
    of ranks from 0 to 1, in the layer's stage); ``file`` holds them, if asked for.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    layer: str
    relevant_weights: int
    units: int
    zero: float
    min: float
    max: float
    mean: float
    file: str


def category_scores(
    options: Options, wanted: str | int, given: InHand | None = None
) -> dict[str, Tensor]:
    """Raw scores of one category by layer, float32 on the CPU, shaped like its units.

    Raises what `read_inputs` raises, UsageError for a category that is not there, and InputError
    naming the layer where a score is not finite.
    """
    device = machine(options).device
    inputs = read_inputs(options, given)
    network = inputs.model.network.to(device)
    (category,) = select(inputs.categories, [wanted])
    return scores_of(
        network, inputs.scoring_images(category.index, device), category.index, options
    )


def scores_of(network: Network, images: Tensor, unit: int, options: Options) -> dict[str, Tensor]:
    """`category_scores` of a network and normalised scoring images that are at hand."""
    found = scored_by(network, images, unit, options)
    if options.criterion == "ensemble":  # mean ranks: of a stage's layers together
        ranks = {}
        for stage in network.stages:
            names = network.layers(stage)
            own = ensemble(network, names, found, unit, options)
            for name, scores, mean in zip(names, own.scores, own.means, strict=True):
                ranks[name] = mean.view(scores.unit_shape).cpu()
        return {name: ranks[name] for name in network.layers()}
    scored = {n: layer_scores(network, n, found[n], unit, options) for n in network.layers()}
    return {n: raw_scores(s.layer).view(s.unit_shape).cpu() for n, s in scored.items()}


def score(
    options: Options,
    wanted: Sequence[str | int],
    out: Path | None,
    progress: Progress,
    given: InHand | None = None,
) -> list[ScoreRow]:
    """Score the wanted categories; with ``out``, one safetensors file each, float32 by layer.

    A full AlexNet's scores are 228 MB a category.  Raises as `category_scores` does.
    """
    device = machine(options).device
    inputs = read_inputs(options, given)
    network = inputs.model.network.to(device)
    chosen = select(inputs.categories, wanted)
    inputs.tell(progress)
    rows = []
    progress.start("scores", len(chosen))
    for category in chosen:
        images = inputs.scoring_images(category.index, device)
        found = scores_of(network, images, category.index, options)
        file = ""
        if out is not None:
            file = str(out / f"{file_stem(category.index, category.name)}.safetensors")
            header = {"category": category.name, "index": str(category.index)}
            write_atomically(Path(file), save(found, metadata=header))
        rows += [
            ScoreRow(
                category=category.name,
                layer=name,
                relevant_weights=math.prod(network.relevant_shape(name)),
                units=values.numel(),
                zero=float((values == 0).double().mean()),
                min=float(values.min()),
                max=float(values.max()),
                mean=float(values.double().mean()),
                file=file,
            )
            for name, values in found.items()
        ]
        progress.advance(1, category.name)
    return rows
