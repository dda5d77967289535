"""What runs images through a network: the machine, both precisions, how many images at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.footprint import (
    FORWARD_CHUNK,
    REPLAY_CHUNK,
    Counts,
    as_run,
    chunk,
    feature_chunk,
    for_chunks,
    unfit,
)
from circuitcore.engine.replay import Replay
from circuitcore.engine.resident import Resident, resident_bytes
from circuitcore.engine.splits import Split
from circuitcore.inputs.pixels import (
    Normaliser,
    Preprocessing,
    normaliser,
    to_device,
    to_input,
)
from circuitcore.machine.arrivals import arrived
from circuitcore.machine.chunks import Ahead, in_chunks
from circuitcore.machine.device import Machine
from circuitcore.machine.state import float32_products
from circuitcore.network.graph import Network
from circuitcore.network.repeats import Repeats
from circuitcore.network.sizes import activation_bytes, multiply_adds, value_shapes
from circuitcore.network.stages import check_units
from circuitcore.options import Options


@dataclass(frozen=True)
class Sizes:
    """Of one image: ``multiply_adds`` of an unpruned forward pass, and with one output alone
    (``multiply_adds_of_one``), bytes of the float32 activations
    alive at once in it (``image_bytes``), and from the boundary on (``feature_bytes``);
    ``memory``: bytes of the budget that are for chunks of images; ``resident``: bytes of all images
    on a GPU, 0 where they are not; ``repeats``: what the network's pooling only copies of such
    images, and is counted once.
    """

    multiply_adds: int
    multiply_adds_of_one: int
    image_bytes: int
    feature_bytes: int
    memory: int
    resident: int = 0
    repeats: Repeats | None = None


@dataclass(frozen=True)
class Runner:
    """Runs images of a split in chunks that fit the memory.

    ``network``: float32, on the device; ``low_network``: the same in the sweep's precision,
    ``network`` itself for float32; ``note``: told what the user should know.
    """

    machine: Machine
    network: Network
    low_network: Network
    preprocessing: Preprocessing
    sizes: Sizes
    note: Callable[[str], None]
    resident: Resident | None = None

    @cached_property
    def normalise(self) -> Normaliser:
        """From pixels on the device to network input."""
        return normaliser(self.preprocessing, self.machine.device)

    @cached_property
    def _replays(self) -> dict[bool, Replay]:
        return {}

    def replay(self, precise: bool) -> Replay:
        """Captured passes on a GPU, in float32 or in the sweep's precision; made once a run."""
        precise = precise or not self.machine.low
        if precise not in self._replays:
            images = chunk(self.sizes.memory, self.sizes.image_bytes)
            self._replays[precise] = Replay(
                self.network if precise else self.low_network,
                None if self.resident is None else self.resident.pixels,
                self.normalise,
                min(images, REPLAY_CHUNK),
                self.sizes.multiply_adds_of_one,
                impl=self.machine.impl,
                fallback=self.machine.fallback,
                note=self.note,
            )
        return self._replays[precise]

    def products(self, precise: bool) -> AbstractContextManager[None]:
        """How float32 is multiplied in a pass: as IEEE has it, or in the sweep's precision."""
        own = self.machine.precision
        return float32_products("ieee" if precise else own, alone=own != "ieee")

    def forward_chunk(self, levels: int = 1) -> int:
        """Images at once through the whole network, ``levels`` levels of each."""
        images = chunk(self.sizes.memory, levels * self.sizes.image_bytes)
        return min(images, FORWARD_CHUNK)

    def feature_chunk(self, levels: int) -> int:
        """Images at once from the cached boundary values on, where ``levels`` levels are asked."""
        masked = self.machine.masked_kernels
        return feature_chunk(self.sizes.memory, self.sizes.feature_bytes, levels, masked)

    def batch(self, split: Split, part: slice | np.ndarray) -> Tensor:
        """Normalised images of a slice of a split, or of these indices, float32 on the device."""
        if self.resident is None:
            return to_input(split.pixels[part], self.preprocessing, self.machine.device)
        return self.normalise(taken(self.resident.pixels, split, part))

    def run_chunks(
        self,
        split: Split,
        images: np.ndarray,
        network: Network,
        features: bool,
        levels: int,
        run: Callable[[dict[str, Tensor]], Tensor],
        precise: bool = True,
        rows: int | None = None,
    ) -> Tensor:
        """``run`` on chunks of images, from boundary values or pixels: float32 [levels, n], CPU.

        The chunks are as large as the memory budget allows for ``levels`` at once.  ``precise``:
        products of float32 are IEEE's, else the machine's; ``rows``: of what ``run`` gives, where
        that is not one a level.
        """
        device = self.machine.device
        dtype = next(iter(network.weights.values())).dtype
        out = torch.empty(rows or levels, len(images), device=device)

        def load(part: slice) -> dict[str, Tensor]:
            at = images[part]
            if not features:
                return {"input": self.batch(split, at).to(dtype)}
            if self.resident is not None:
                kept = self.resident.features
                return {name: taken(kept[name], split, at).to(dtype) for name in split.features}
            return {
                name: to_device(stored[at], device).to(dtype)
                for name, stored in split.features.items()
            }

        def work(part: slice) -> None:
            out[:, part] = run(chunks.take(part))

        size = self.feature_chunk(levels) if features else self.forward_chunk(levels)
        ahead = Ahead(load, len(images), device, direct=self.resident is not None)
        with self.products(precise), ahead as chunks:
            in_chunks(len(images), size, work, fallback=self.machine.fallback, note=self.note)
        return out if device.type == "cpu" else arrived(out)


def taken(stored: Tensor, split: Split, images: np.ndarray | slice) -> Tensor:
    """Images of a split out of what is resident; one copy of their numbers to the device."""
    if isinstance(images, slice):
        return stored[split.first + images.start : split.first + images.stop]
    return stored.index_select(0, to_device(images + split.first, stored.device))


def sizes_of(
    network: Network,
    shape: Sequence[int],
    options: Options,
    machine: Machine,
    counts: Counts,
    item: int = 1,
) -> Sizes:
    """Sizes of images of ``shape`` [C, H, W], ``item`` bytes a value, and the memory left for them.

    Raises InputError where such images do not fit the network or leave more than one value an
    output unit, DeviceError where one image at a
    time is too much for the memory budget.
    """
    try:
        per_image = multiply_adds(network, shape)
        check_units(network, value_shapes(network, shape)[network.result])
        lean, repeats = as_run(network, shape, machine)
        image_bytes = activation_bytes(lean, shape)
        feature_bytes = activation_bytes(lean, shape, after_boundary=True)
    except RuntimeError as error:
        raise unfit(shape, error) from None
    memory = for_chunks(network, shape, options, machine, counts)
    images = counts.extraction + counts.heldout
    resident = resident_bytes(network, shape, machine, images, item, memory)
    of_one = sum(per_image.values()) - per_image[network.last]
    of_one += per_image[network.last] // network.outputs
    return Sizes(
        sum(per_image.values()), of_one, image_bytes, feature_bytes, memory - resident, resident,
        repeats,
    )  # fmt: skip
