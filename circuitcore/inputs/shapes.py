"""The paper's problem by its shapes alone: torchvision's AlexNet and as many images as ImageNet's.

No weights, no image: only `plan` with a target can use it, on any machine and without a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from circuitcore.inputs.categories import Category, Mapping
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.models import Model
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.inputs.read import Inputs
from circuitcore.network.trace import trace
from circuitcore.options import Options

SHAPES = "tv:alexnet-shapes"
CATEGORIES, PIXELS = 1000, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Blank:
    """Images of one size that are not there."""

    place: str = "nowhere"

    def pixels(self, path: str, preprocessing: Preprocessing) -> np.ndarray:
        """Zeros, uint8 [C, H, W]."""
        return np.zeros((preprocessing.channels, PIXELS, PIXELS), np.uint8)


def shapes_inputs(options: Options) -> Inputs:
    """Inputs of a sweep of `SHAPES`, with as many images a category as the options say."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        module = alexnet(weights=None)
    empty = {name: torch.zeros(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(empty, assign=True)  # tracing asks for values; they are let go of
    network = trace(module).to("meta")
    model = Model(SHAPES, network, "", None, Preprocessing(256, PIXELS, MEAN, STD))
    units = [Category(unit, str(unit), str(unit)) for unit in range(CATEGORIES)]
    counts = {
        "scoring": options.scoring_images,
        "extraction": options.extraction_images,
        "heldout": options.heldout_images,
    }
    images = tuple(
        ImageFile(0, "", unit.index, split, "")
        for split, count in counts.items()
        for unit in units
        for _ in range(count)
    )
    return Inputs(model, Blank(), Mapping(tuple(units), "by name"), images, {})  # type: ignore[arg-type]
