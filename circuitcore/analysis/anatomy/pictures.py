"""The pixels beside an anatomy: an example image, the maps and filters on it, images of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuitcore.analysis.anatomy.anatomy import Anatomy
from circuitcore.engine.passes import Kept, circuit_override
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.pixels import Preprocessing, decode, to_input
from circuitcore.inputs.read import Inputs
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.network.layers.table import LAYERS
from circuitcore.runs.images.exemplarfile import Exemplars

CPU = torch.device("cpu")
IMAGES = 2  # beside a unit
Place = tuple[str, int]
"""A layer and one of its units"""


@dataclass(frozen=True)
class Pictures:
    """What is drawn in and beside units.

    ``example``: the image shown to the circuit, uint8 [H, W, 3], called ``name``, a ``hit`` or not
    (None where that is not known); ``maps``: of units with positions the circuit's own activation
    on it, float32 [h, w], of others a number [1, 1]; ``filters``: of the first layer, [r, s, 3] in
    [0, 1]; ``exemplars``: the extraction images that drive a unit most, uint8 [H, W, 3] each.
    """

    example: np.ndarray
    name: str
    hit: bool | None
    maps: dict[Place, np.ndarray]
    filters: dict[Place, np.ndarray]
    exemplars: dict[Place, list[np.ndarray]]


@torch.inference_mode()
def pictures(
    found: Anatomy, kept: Kept, bias: float, inputs: Inputs, best: Exemplars,
    image: str | None = None,
) -> Pictures:  # fmt: skip
    """Pixels of all units that ``found`` shows, for the circuit ``kept`` with its ``bias``.

    ``image``: which one, as `example` takes it.  Cost: two passes over the category's extraction
    images, one of the example.  Raises InputError where images cannot be read, UsageError where
    there is no such image.
    """
    network = inputs.model.network
    places = [(layer.layer, unit.unit) for layer in found.layers for unit in layer.shown]
    pixels, name, hit = example(inputs, found.index, kept, bias, image)
    shown = to_input(np.stack([pixels]), inputs.model.preprocessing, CPU)
    files = {file.id: file for file in inputs.split("extraction")}
    return Pictures(
        example=as_picture(pixels),
        name=name,
        hit=hit,
        maps=_maps(network, found.index, kept, shown, places),
        filters=_filters(network, places),
        exemplars=_exemplars(inputs, found.index, files, best, places),
    )


def example(
    inputs: Inputs, unit: int, kept: Kept, bias: float, image: str | None
) -> tuple[np.ndarray, str, bool | None]:
    """Pixels of the image to show the circuit, its name, and whether it is a hit there.

    ``image``: the number of an extraction image of the category, from 0, or a file; by default the
    one with the circuit's highest activation, of those that are hits if any are.
    """
    network, own = inputs.model.network, inputs.model.preprocessing
    if image is not None and not image.isdecimal():
        path = Path(image).expanduser()
        if not path.is_file():
            raise InputError(f"--image {image}: no such file")
        pixels = decode(path, own)
        _, hits = _judged(network, unit, kept, bias, to_input(np.stack([pixels]), own, CPU))
        return pixels, path.name, _one(hits, 0)
    files = _of_category(inputs, unit)
    if image is not None:
        if int(image) >= len(files):
            raise UsageError(f"--image {image}: there are {len(files)}, from 0")
        files = [files[int(image)]]
    every = np.stack([inputs.source.pixels(file.path, own) for file in files])
    values, hits = _judged(network, unit, kept, bias, to_input(every, own, CPU))
    ranked = (
        values if hits is None or not bool(hits.any()) else values.masked_fill(~hits, -torch.inf)
    )
    best = int(ranked.argmax())
    return every[best], files[best].path, _one(hits, best)


def _one(hits: Tensor | None, at: int) -> bool | None:
    return None if hits is None else bool(hits[at])


def _of_category(inputs: Inputs, unit: int) -> Sequence[ImageFile]:
    """Extraction images of a category; of another target all, of which the first ones are read."""
    files = inputs.split("extraction")
    if inputs.aim is not None:
        return files[:64]
    return [file for file in files if file.category == unit]


def _judged(
    network: Network, unit: int, kept: Kept, bias: float, images: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The circuit's activations [N], and which are hits against the unpruned other logits [N]."""
    pruned, override = circuit_override(network, unit, kept)
    values = forward(pruned, {"input": images}, [network.result], override=override)[0][:, 0]
    if network.outputs < 2 or values.dim() > 1:
        return values.flatten(1).amax(1) if values.dim() > 1 else values, None
    logits = forward(network, {"input": images}, [network.result])[0]
    others = logits.clone()
    others[:, unit] = -torch.inf
    return values, values + bias > others.amax(1)


def _maps(
    network: Network, unit: int, kept: Kept, image: Tensor, places: Sequence[Place]
) -> dict[Place, np.ndarray]:
    """What the units give on [1, ...] in the circuit, behind their norm and rectifier."""
    pruned, override = circuit_override(network, unit, kept)
    names = {layer: _shown_value(network, layer) for layer, _ in places}
    values = forward(pruned, {"input": image}, list(names.values()), override=override)
    by_layer = dict(zip(names, values, strict=True))
    found = {}
    for layer, place in places:
        value = by_layer[layer][0, place].float()
        found[layer, place] = value.view(1, 1).numpy() if value.dim() == 0 else value.numpy()
    return found


def _shown_value(network: Network, layer: str) -> str:
    """The value of a layer's units behind what keeps channels and positions as they are."""
    name, keeps = layer, ("batchnorm", "relu")
    while True:
        readers = [step for step in network.steps if name in step.inputs]
        if len(readers) != 1 or len(readers[0].inputs) != 1:
            return name
        step = readers[0]
        activation = step.op in LAYERS and LAYERS[step.op].reach == "own" and not step.settings
        if not (step.op in keeps or activation):
            return name
        name = step.name


def _filters(network: Network, places: Sequence[Place]) -> dict[Place, np.ndarray]:
    """The weights of units that read the image's own channels, each scaled to [0, 1]."""
    found = {}
    for layer, place in places:
        step = network.step(layer)
        weight = network.weights[layer]
        if step.op != "conv" or step.inputs != ("input",) or weight.shape[1] not in (1, 3):
            continue
        taps = weight[place].permute(1, 2, 0).float()
        half = float(taps.abs().max()) or 1.0
        found[layer, place] = (taps / (2 * half) + 0.5).expand(-1, -1, 3).numpy()
    return found


def _exemplars(
    inputs: Inputs,
    unit: int,
    files: dict[int, ImageFile],
    best: Exemplars,
    places: Sequence[Place],
) -> dict[Place, list[np.ndarray]]:
    seen: dict[int, np.ndarray] = {}
    found: dict[Place, list[np.ndarray]] = {}
    for layer, place in places:
        last = layer == inputs.model.network.last and inputs.model.network.outputs > 1
        row = unit if last else place
        ids = best.images[layer][row][:IMAGES].tolist()
        for each in ids:
            if each not in seen:
                file = files[each]
                own: Preprocessing = inputs.model.preprocessing
                seen[each] = as_picture(inputs.source.pixels(file.path, own))
        found[layer, place] = [seen[each] for each in ids]
    return found


def as_picture(pixels: np.ndarray) -> np.ndarray:
    """[C, H, W] of any kind as uint8 [H, W, 3]; what is no bytes is scaled to its own range."""
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = ((pixels - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    shown = pixels if len(pixels) in (1, 3) else pixels.mean(0, keepdims=True).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown.transpose(1, 2, 0), (*shown.shape[1:], 3)))
