"""What all categories share, computed once a run: model, images, unpruned logits, conv features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuitcore.categories import Category, check_assignment, map_folders
from circuitcore.categories import Mapping as FolderMapping
from circuitcore.chunks import in_chunks
from circuitcore.cost import activation_bytes, multiply_adds
from circuitcore.decoding import PIXELS, Decoding, decode_all, unreadable_images
from circuitcore.device import DTYPES, memory_budget, pick, resolve_dtype
from circuitcore.errors import InputError
from circuitcore.footprint import (
    FORWARD_CHUNK,
    Counts,
    chunk,
    feature_chunk,
    for_chunks,
    masked_kernels,
)
from circuitcore.images import (
    ImageFile,
    Preprocessing,
    choose_images,
    list_folders,
    to_input,
)
from circuitcore.memory import return_large_blocks
from circuitcore.models import Model, load_model
from circuitcore.network import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.scratch import Scratch
from circuitcore.spans import span
from circuitcore.unpruned import Arrays, Split, taken_over, unpruned


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


@dataclass(frozen=True)
class Prepared:
    """Everything the categories of a run share, on the run's device."""

    inputs: Inputs
    options: Options
    device: torch.device
    network: Network  # float32, on the device
    sweep_network: Network  # the same in the sweep's precision; ``network`` itself for float32
    dtype: torch.dtype  # of sweeps
    memory: int  # bytes of the budget that are for chunks of images
    extraction: Split
    heldout: Split
    forward_multiply_adds: int  # of one unpruned forward pass of one image
    image_bytes: int  # float32 activations alive at once, of one image, in a forward pass
    feature_bytes: int  # the same from the boundary on
    note: Callable[[str], None]  # told what the user should know
    scratch: Scratch  # of pixels and boundary values

    @property
    def preprocessing(self) -> Preprocessing:
        """How files become pixels and pixels network input."""
        return self.inputs.model.preprocessing

    def chunk(self, image_bytes: int) -> int:
        """Images that fit the memory budget at once at ``image_bytes`` of values alive each."""
        return chunk(self.memory, image_bytes)

    def feature_chunk(self, levels: int) -> int:
        """Images at once from the cached boundary values on, where ``levels`` levels are asked."""
        masked = masked_kernels(self.options, self.device)
        return feature_chunk(self.memory, self.feature_bytes, levels, masked)

    def scoring_images(self, unit: int) -> Tensor:
        """Normalised scoring images of one category, float32 on the device."""
        return self.inputs.scoring_images(unit, self.device)

    def in_chunks(self, split: Split, size: int, work: Callable[[slice], None]) -> None:
        """Call ``work`` with slices of the split of at most ``size`` images, fewer if need be."""
        in_chunks(
            len(split),
            size,
            work,
            fallback=not self.options.no_fallback,
            note=self.note,
        )

    def batch(self, split: Split, part: slice | np.ndarray) -> Tensor:
        """Normalised images of a slice of a split, or of these indices, float32 on the device."""
        return to_input(split.pixels[part], self.preprocessing, self.device)


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


def prepare(
    inputs: Inputs, options: Options, progress: Progress, given: Arrays | None = None
) -> Prepared:
    """Decode the images and, as they come, run the unpruned network once over them.

    Then the order of the categories is checked.  ``given``: what a process with the same inputs
    made of them (`unpruned.give_on`); nothing is decoded, run or checked again then.
    Cost: one forward pass over extraction and held-out images, 1 byte a pixel and 4 bytes a
    boundary value on disk.  Raises InputError where images do not fit the network, the assignment
    of folders to units is wrong, or accuracy is near chance, and DeviceError where one image at a
    time is too much for the memory budget.
    """
    device = pick(options)
    budget = memory_budget(options, device)
    return_large_blocks()
    network = inputs.model.network.to(device)
    extraction_files, heldout_files = inputs.split("extraction"), inputs.split("heldout")
    scratch = Scratch()
    if given is not None:
        sizes = _sizes(network, given[PIXELS].shape[1:], inputs, options, budget)
        extraction, heldout = taken_over(given, extraction_files, heldout_files)
    else:
        every = [*extraction_files, *heldout_files]
        progress.start("decoding, unpruned network", len(every))
        with Decoding(inputs.root, every, inputs.model.preprocessing, scratch) as decoding:
            sizes = _sizes(network, decoding.pixels.shape[1:], inputs, options, budget)
            at_once = min(chunk(sizes.memory, sizes.image_bytes), FORWARD_CHUNK)
            with span("stage", "unpruned extraction"):
                extraction = unpruned(
                    network, decoding, 0, extraction_files, at_once, scratch, options, progress
                )
            with span("stage", "unpruned heldout"):
                heldout = unpruned(
                    network, decoding, len(extraction), heldout_files, at_once, None, options,
                    progress,
                )  # fmt: skip
        check_assignment(
            extraction.logits.argmax(1).numpy(),
            extraction.labels.numpy(),
            inputs.categories,
            network.outputs,
        )
    dtype = DTYPES[resolve_dtype(options)]
    return Prepared(
        inputs,
        options,
        device,
        network,
        network if dtype == torch.float32 else network.to(device, dtype),
        dtype,
        sizes.memory,
        extraction,
        heldout,
        sizes.multiply_adds,
        sizes.image_bytes,
        sizes.feature_bytes,
        progress.note,
        scratch,
    )


@dataclass(frozen=True)
class _Sizes:
    """Of one image: as in `Prepared`; ``memory``: bytes of the budget for chunks of images."""

    multiply_adds: int
    image_bytes: int
    feature_bytes: int
    memory: int


def _sizes(
    network: Network,
    shape: tuple[int, ...],
    inputs: Inputs,
    options: Options,
    budget: int,
) -> _Sizes:
    try:
        per_image = multiply_adds(network, shape)
        image_bytes = activation_bytes(network, shape)
        feature_bytes = activation_bytes(network, shape, after_boundary=True)
    except RuntimeError as error:
        raise InputError(
            f"images of {shape[2]} x {shape[1]} pixels and {shape[0]} channels do not fit the "
            f"network ({error}): give --resize and --crop"
        ) from None
    numbers = {name: len(inputs.split(name)) for name in ("extraction", "heldout")}
    counts = Counts(**numbers, categories=len(inputs.categories))
    memory = for_chunks(network, shape, options, pick(options), counts, budget)
    return _Sizes(sum(per_image.values()), image_bytes, feature_bytes, memory)
