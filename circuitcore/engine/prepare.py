"""What all categories share, computed once a run: model, images, unpruned logits, conv features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.footprint import (
    FORWARD_CHUNK,
    Counts,
    chunk,
    feature_chunk,
    for_chunks,
    masked_kernels,
)
from circuitcore.engine.splits import Arrays, Split, taken_over, unpruned
from circuitcore.errors import InputError
from circuitcore.inputs.categories import check_assignment
from circuitcore.inputs.decoding import PIXELS, Decoding
from circuitcore.inputs.pixels import Preprocessing, to_input
from circuitcore.inputs.read import Inputs
from circuitcore.machine.chunks import in_chunks
from circuitcore.machine.device import DTYPES, memory_budget, pick, resolve_dtype
from circuitcore.machine.meter import return_large_blocks
from circuitcore.machine.scratch import Scratch
from circuitcore.machine.spans import span
from circuitcore.network.graph import Network
from circuitcore.network.sizes import activation_bytes, multiply_adds
from circuitcore.options import Options
from circuitcore.progress import Progress


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
