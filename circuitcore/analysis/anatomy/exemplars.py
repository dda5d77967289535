"""The images of the extraction set that drive each unit most, in the unpruned network.

A unit's activation on an image is its largest over positions, before the rectifier.  One pass over
the extraction set serves all units of all layers and every category: 1 forward-pass equivalent,
once a run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.pixels import to_input
from circuitcore.inputs.read import Inputs
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.progress import Progress
from circuitcore.runs.exemplarfile import Exemplars

MOST = 4  # images a unit
BYTES = 1 << 28  # of activations at a time
CHUNK = 64


@torch.inference_mode()
def exemplars(
    network: Network, inputs: Inputs, device: torch.device, progress: Progress
) -> Exemplars:
    """The `MOST` extraction images with the largest activation of every unit of every layer.

    ``network`` on ``device``, float32.  Of equal ones the first is taken.  Images are decoded and
    run in chunks whose activations fit `BYTES`.
    """
    files, names = inputs.split("extraction"), network.layers()
    most = min(MOST, len(files))
    best: dict[str, tuple[Tensor, Tensor]] = {}
    progress.start("images that drive units", len(files))
    start, count = 0, 1
    while start < len(files):
        part = files[start : start + count]
        pixels = decode_all(inputs.source, part, inputs.model.preprocessing)
        shown = {"input": to_input(pixels, inputs.model.preprocessing, device)}
        ids = torch.tensor([file.id for file in part])
        used = 0
        for name, value in zip(names, forward(network, shown, names), strict=True):
            used += 4 * math.prod(value.shape[1:])
            peak = value.flatten(2).amax(2) if value.dim() > 2 else value
            best[name] = _best(best.get(name), peak.float().cpu().T, ids, most)
        start += len(part)
        count = max(min(BYTES // max(used, 1), CHUNK), 1)
        progress.advance(len(part))
    return Exemplars(
        {name: images for name, (_, images) in best.items()},
        {name: values for name, (values, _) in best.items()},
    )


def _best(
    so_far: tuple[Tensor, Tensor] | None, values: Tensor, ids: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The largest of [units, images] values and those before them, with their images."""
    images = ids.expand(len(values), -1)
    if so_far is not None:
        values, images = torch.cat([so_far[0], values], 1), torch.cat([so_far[1], images], 1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :most]
    return values.gather(1, order), images.gather(1, order)
