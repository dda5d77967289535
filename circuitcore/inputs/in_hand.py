"""A module in hand, with its own transform object, as a model to be swept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from circuitcore.errors import InputError
from circuitcore.inputs.pixels import Preprocessing, decode_opened, to_input
from circuitcore.network.graph import Network

PROBE = (320, 256)  # width and height of the image that tells preprocessings apart
NORMALISING = {"Normalize"}
TO_TENSOR = {"ToTensor", "MaybeToTensor"}


def preprocessing_of(transform: Callable[[Any], Any] | None, channels: int) -> Preprocessing:
    """What a transform object does, split so that images are kept as bytes where that is exact.

    A transform that ends in ``ToTensor`` and ``Normalize`` is run up to there and normalised here;
    torchvision's presets for weights likewise.  Any other is run whole and its tensors are kept as
    float32, four times the room.  None: images come as tensors that are network input.
    """
    identity = (0.0,) * channels, (1.0,) * channels
    if transform is None:
        return Preprocessing(None, None, *identity, channels, ready=True)
    if not callable(transform):
        raise InputError(f"a transform is called with an image; {transform!r} cannot be")
    whole = Preprocessing(None, None, *identity, channels, transform=transform)
    split = _preset(transform) or _split(transform, channels)
    probe = probe_input(whole)
    if not torch.equal(probe, probe_input(whole)):
        raise InputError(
            "the transform is random: two calls on one image differ; give the one for evaluation"
        )
    if split is None or split.channels != channels:
        return whole
    return split if torch.equal(probe_input(split), probe) else whole


def _preset(transform: Any) -> Preprocessing | None:
    """Of a torchvision preset, which says what it does."""
    needed = ("resize_size", "crop_size", "mean", "std", "interpolation")
    if any(not hasattr(transform, name) for name in needed):
        return None
    return own_preprocessing(transform)


def own_preprocessing(transforms: Any) -> Preprocessing:
    """The preprocessing that torchvision's weights bring along."""
    return Preprocessing(
        transforms.resize_size[0],
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        len(transforms.mean),
        transforms.interpolation.value,
    )


def _split(transform: Any, channels: int) -> Preprocessing | None:
    """Of a ``Compose`` that ends in ``ToTensor`` and ``Normalize``: these, and what precedes."""
    steps = getattr(transform, "transforms", None)
    if not isinstance(steps, Sequence) or len(steps) < 2:
        return None
    *before, to_tensor, last = steps
    kinds = type(to_tensor).__name__, type(last).__name__
    if kinds[0] not in TO_TENSOR or kinds[1] not in NORMALISING:
        return None
    mean, std = (tuple(map(float, np.ravel(v))) for v in (last.mean, last.std))
    if len(mean) != channels or len(std) != channels:
        return None

    return Preprocessing(None, None, mean, std, channels, transform=Steps(before))


class Steps:
    """``transforms`` one after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> Any:
        """What the last one gives."""
        for step in self.transforms:
            image = step(image)
        return image


def plain_steps(transform: Any, channels: int) -> Preprocessing | None:
    """The numbers of a ``Compose`` that resizes the shorter side, crops the centre, normalises.

    None where it does anything else, or where its numbers do not give the same input.
    """
    kinds = [type(step).__name__ for step in getattr(transform, "transforms", ())]
    if len(kinds) != 4 or kinds[:2] != ["Resize", "CenterCrop"]:
        return None
    split = _split(transform, channels)
    resize, crop = transform.transforms[0], transform.transforms[1].size
    sizes = [resize.size] if isinstance(resize.size, int) else list(resize.size)
    if split is None or len(sizes) != 1 or resize.max_size is not None or crop[0] != crop[1]:
        return None
    plain = replace(split, resize=int(sizes[0]), crop=int(crop[0]), transform=None,
                    interpolation=resize.interpolation.value)  # fmt: skip
    return plain if torch.equal(probe_input(plain), probe_input(split)) else None


def probe_input(preprocessing: Preprocessing, size: tuple[int, int] | None = None) -> Tensor:
    """Network input [1, channels, height, width] made of one fixed image of noise.

    ``size``: its height and width, for a network that takes no other where nothing resizes it.
    Raises InputError where the transform fails on it.
    """
    shape = size or (PROBE[1], PROBE[0])
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pixels = decode_opened(lambda: image.copy(), "a probe image, by the transform", preprocessing)
    return to_input(pixels[None].copy(), preprocessing, torch.device("cpu"))


def fingerprint(preprocessing: Preprocessing) -> str:
    """sha256 of one probe image's input: what preprocessing does, however it is written down."""
    if preprocessing.ready:
        return "ready"
    probe = probe_input(preprocessing).contiguous().numpy().tobytes()
    return hashlib.sha256(probe).hexdigest()


def identity(network: Network, preprocessing: Preprocessing) -> dict[str, str]:
    """What a model in hand adds to its keys: hashes of its graph and of one probe image's input."""
    steps = [(s.name, s.op, s.inputs, sorted(s.settings.items())) for s in network.steps]
    graph = hashlib.sha256(repr(steps).encode()).hexdigest()
    return {"graph_sha256": graph, "probe_sha256": fingerprint(preprocessing)}


def check_module(module: object) -> nn.Module:
    """The module, if it is one.  Raises InputError naming what was given instead."""
    if not isinstance(module, nn.Module):
        raise InputError(f"a model in hand is a torch.nn.Module, not {type(module).__name__}")
    return module
