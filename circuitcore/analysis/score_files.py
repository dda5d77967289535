"""The scoring step alone: scores of each category's weights, written out for inspection."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import save

from circuitcore.inputs.categories import select
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.levels.layer import raw_scores
from circuitcore.machine.device import pick
from circuitcore.machine.files import write_atomically
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.scoring.scores import contributions, layer_scores


class ScoreRow(BaseModel):
    """Scores of one layer for one category: ``units`` scores, ``zero`` of them exactly 0.

    In units of the target's activation, before normalisation; ``file`` holds them, if asked for.
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


def score(
    options: Options, wanted: Sequence[str], out: Path | None, progress: Progress
) -> list[ScoreRow]:
    """Score the wanted categories; with ``out``, one safetensors file each, float32 by layer.

    A full AlexNet's scores are 228 MB a category.  Raises what `read_inputs` raises, and
    InputError naming the layer where a score is not finite.
    """
    device = pick(options)
    inputs = read_inputs(options)
    network = inputs.model.network.to(device)
    chosen = select(inputs.categories, wanted)
    rows = []
    progress.start("scores", len(chosen))
    for category in chosen:
        images = inputs.scoring_images(category.index, device)
        found = contributions(network, images, category.index)
        written = {}
        file = ""
        if out is not None:
            plain = re.sub(r"[^A-Za-z0-9_-]+", "_", category.name)
            file = str(out / f"{category.index:04d}-{plain}.safetensors")
        for name in network.layers():
            scores = layer_scores(network, name, found[name], category.index, options)
            values = raw_scores(scores.layer)
            if out is not None:
                written[name] = values.view(scores.unit_shape).cpu()
            rows.append(
                ScoreRow(
                    category=category.name,
                    layer=name,
                    relevant_weights=math.prod(scores.shape),
                    units=values.numel(),
                    zero=float((values == 0).double().mean()),
                    min=float(values.min()),
                    max=float(values.max()),
                    mean=float(values.double().mean()),
                    file=file,
                )
            )
        if out is not None:
            header = {"category": category.name, "index": str(category.index)}
            write_atomically(Path(file), save(written, metadata=header))
        progress.advance(1, category.name)
    return rows
