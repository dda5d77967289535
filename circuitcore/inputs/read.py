"""All that a run reads from outside: the model, and which images score, extract and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuitcore.inputs.categories import Category, map_folders
from circuitcore.inputs.categories import Mapping as FolderMapping
from circuitcore.inputs.decoding import decode_all, unreadable_images
from circuitcore.inputs.image_files import ImageFile, choose_images, list_folders
from circuitcore.inputs.models import Model, load_model
from circuitcore.inputs.pixels import to_input
from circuitcore.options import Options


@dataclass(frozen=True)
class Inputs:
    """Model and image list of a run: all that its keys depend on, before any pixel is decoded."""

    model: Model
    root: Path
    mapping: FolderMapping
    images: tuple[ImageFile, ...]
    left_out: Mapping[Path, str]  # unreadable images, and what is wrong with them

    @property
    def categories(self) -> tuple[Category, ...]:
        """The output units that have images."""
        return self.mapping.categories

    def split(self, name: str) -> list[ImageFile]:
        """The images of ``scoring``, ``extraction`` or ``heldout``."""
        return [image for image in self.images if image.split == name]

    def scoring_images(self, unit: int, device: torch.device) -> Tensor:
        """Normalised scoring images of one category, float32 on ``device``."""
        files = [image for image in self.split("scoring") if image.category == unit]
        pixels = decode_all(self.root, files, self.model.preprocessing)
        return to_input(pixels, self.model.preprocessing, device)


def images_root(options: Options) -> Path:
    """The images folder: the bundled one, or the path given."""
    if options.images == "bundled":
        from circuitcore.bundled import IMAGES

        return Path(IMAGES)
    return Path(options.images).expanduser()


def read_inputs(options: Options) -> Inputs:
    """Load the model and choose the images, with ``--max-bad`` those that can be decoded.

    Raises InputError or UsageError as `load_model`, `map_folders` and `choose_images` do.
    """
    root = images_root(options)
    folders = list_folders(root)
    model = load_model(options)
    mapping = map_folders(folders, model.network.outputs, model.categories, options.categories)
    pairs = [(c.index, c.folder) for c in mapping.categories]
    counts = options.scoring_images, options.extraction_images, options.heldout_images
    bad: dict[Path, str] = {}
    if options.max_bad:
        bad = unreadable_images(root, pairs, counts, model.preprocessing, options.max_bad)
    images = choose_images(root, pairs, counts, bad)
    return Inputs(model, root, mapping, tuple(images), bad)
