"""What all categories share, computed once a run: model, images, unpruned logits, conv features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuitcore.categories import Category, Mapping, check_assignment, map_folders
from circuitcore.chunks import Ahead, in_chunks
from circuitcore.cost import activation_bytes, multiply_adds
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
from circuitcore.forward import forward
from circuitcore.images import (
    Decoding,
    ImageFile,
    Preprocessing,
    choose_images,
    decode_all,
    disk_array,
    list_folders,
    to_input,
)
from circuitcore.memory import return_large_blocks
from circuitcore.models import Model, load_model
from circuitcore.network import Network
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.spans import span


@dataclass(frozen=True)
class Inputs:
    """Model and image list of a run: all that its keys depend on, before any pixel is decoded."""

    model: Model
    root: Path
    mapping: Mapping
    images: tuple[ImageFile, ...]

    @property
    def categories(self) -> tuple[Category, ...]:
        """The output units that have images."""
        return self.mapping.categories

    def split(self, name: str) -> list[ImageFile]:
        """The images of ``scoring``, ``extraction`` or ``heldout``."""
        return [image for image in self.images if image.split == name]


@dataclass(frozen=True)
class Split:
    """One set of N images, decoded, with what the unpruned network makes of them.

    ``pixels`` uint8 [N, channels, height, width]; ``labels`` int64 [N], output units; ``logits``
    float32 [N, K]; ``features``: float32 [N, ...] values at the boundary between conv and fc stage
    by name (empty unless asked for), memory-mapped.
    """

    pixels: np.ndarray
    labels: Tensor
    logits: Tensor
    features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)


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
        files = [i for i in self.inputs.split("scoring") if i.category == unit]
        pixels = decode_all(self.inputs.root, files, self.preprocessing)
        return to_input(pixels, self.preprocessing, self.device)

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
    """Load the model and choose the images, without decoding any.

    Raises InputError or UsageError as `load_model`, `map_folders` and `choose_images` do.
    """
    root = images_root(options)
    folders = list_folders(root)
    model = load_model(options)
    mapping = map_folders(folders, model.network.outputs, model.categories, options.categories)
    pairs = [(c.index, c.folder) for c in mapping.categories]
    images = choose_images(
        root, pairs, options.scoring_images, options.extraction_images, options.heldout_images
    )
    return Inputs(model, root, mapping, tuple(images))


def prepare(inputs: Inputs, options: Options, progress: Progress) -> Prepared:
    """Decode the images and, as they come, run the unpruned network once over them.

    Then the order of the categories is checked.
    Cost: one forward pass over extraction and held-out images, 1 byte a pixel and 4 bytes a
    boundary value on disk.  Raises InputError where images do not fit the network, the assignment
    of folders to units is wrong, or accuracy is near chance, and DeviceError where one image at a
    time is too much for the memory budget.
    """
    device = pick(options)
    memory = memory_budget(options, device)
    return_large_blocks()
    network = inputs.model.network.to(device)
    wanted = {name: inputs.split(name) for name in ("extraction", "heldout")}
    every = [file for files in wanted.values() for file in files]
    dtype = DTYPES[resolve_dtype(options)]
    progress.start("decoding, unpruned network", len(every))
    with Decoding(inputs.root, every, inputs.model.preprocessing) as decoding:
        shape = decoding.pixels.shape[1:]
        try:
            per_image = multiply_adds(network, shape)
            image_bytes = activation_bytes(network, shape)
            feature_bytes = activation_bytes(network, shape, after_boundary=True)
        except RuntimeError as error:
            raise InputError(
                f"images of {shape[2]} x {shape[1]} pixels and {shape[0]} channels do not fit the "
                f"network ({error}): give --resize and --crop"
            ) from None
        numbers = {name: len(files) for name, files in wanted.items()}
        counts = Counts(**numbers, categories=len(inputs.categories))
        memory = for_chunks(network, shape, options, device, counts, memory)
        at_once = min(chunk(memory, image_bytes), FORWARD_CHUNK)
        splits: dict[str, Split] = {}
        for name, files in wanted.items():
            first = sum(map(len, splits.values()))
            with span("stage", f"unpruned {name}"):
                splits[name] = _unpruned(
                    network,
                    decoding,
                    slice(first, first + len(files)),
                    files,
                    inputs.model.preprocessing,
                    at_once,
                    name == "extraction",
                    options,
                    progress,
                )
    extraction = splits["extraction"]
    check_assignment(
        extraction.logits.argmax(1).numpy(),
        extraction.labels.numpy(),
        inputs.categories,
        network.outputs,
    )
    return Prepared(
        inputs,
        options,
        device,
        network,
        network if dtype == torch.float32 else network.to(device, dtype),
        dtype,
        memory,
        extraction,
        splits["heldout"],
        sum(per_image.values()),
        image_bytes,
        feature_bytes,
        progress.note,
    )


@torch.inference_mode()
def _unpruned(
    network: Network,
    decoding: Decoding,
    rows: slice,
    files: Sequence[ImageFile],
    preprocessing: Preprocessing,
    chunk: int,
    cached: bool,
    options: Options,
    progress: Progress,
) -> Split:
    """The unpruned network on ``rows`` of what is being decoded, each chunk as soon as it is."""
    device = pick(options)
    pixels = decoding.pixels[rows]
    names = network.boundary() if cached else ()
    logits = torch.empty(len(files), network.outputs)
    features: dict[str, np.ndarray] = {}

    def load(part: slice) -> dict[str, Tensor]:
        decoding.wait(rows.start + part.stop)
        return {"input": to_input(pixels[part], preprocessing, device)}

    def run(part: slice) -> None:
        *values, out = forward(network, chunks.take(part), [*names, network.last])
        logits[part] = out.cpu()
        for name, value in zip(names, values, strict=True):
            if name not in features:
                features[name] = disk_array((len(files), *value.shape[1:]), np.dtype(np.float32))
            features[name][part] = value.cpu().numpy()
        progress.advance(part.stop - part.start)

    with Ahead(load, len(files), device) as chunks:
        in_chunks(len(files), chunk, run, fallback=not options.no_fallback, note=progress.note)
    if not bool(torch.isfinite(logits).all()):
        raise InputError("the unpruned network's logits are NaN or infinite on these images")
    labels = torch.tensor([file.category for file in files])
    return Split(pixels, labels, logits, features)
