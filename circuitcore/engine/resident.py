"""What of a run's images lies on a GPU for all of its categories: pixels and boundary values.

All 50,000 images of 224 pixels are 7.5 GB as bytes, AlexNet's boundary values 1.8 GB: where they
fit, no image crosses to the device more than once a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.splits import Arrays, boundary_values
from circuitcore.inputs.decoding import PIXELS
from circuitcore.machine.device import Machine
from circuitcore.network.graph import Network
from circuitcore.network.sizes import value_sizes

SHARE = 0.75  # of the memory for images and activations may be taken by what is resident


@dataclass(frozen=True)
class Resident:
    """The images of both sets, extraction first, on a device.

    ``pixels`` as decoded, [M, C, H, W]; ``features``: float32 [M, ...] boundary values by name.
    """

    pixels: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, rows: slice, values: Tensor) -> None:
        """Take over boundary values [n, ...] of the images ``rows``."""
        if name not in self.features:
            self.features[name] = values.new_empty(len(self.pixels), *values.shape[1:])
        self.features[name][rows] = values


def resident_bytes(
    network: Network, shape: Sequence[int], machine: Machine, images: int, item: int, spare: int
) -> int:
    """Bytes of ``images`` images [C, H, W] on the device; 0 where they do not fit, or on a CPU.

    ``item``: bytes of a pixel's value; ``spare``: of the budget that is for images.
    """
    if machine.device.type != "cuda":
        return 0
    values = value_sizes(network, shape)
    each = item * math.prod(shape) + 4 * sum(values[name] for name in network.boundary())
    return images * each if images * each <= SHARE * spare else 0


def room(pixels: np.ndarray, machine: Machine) -> Resident:
    """Room on the device for images that are being decoded to ``pixels``."""
    dtype = torch.uint8 if pixels.dtype == np.uint8 else torch.float32
    return Resident(torch.empty(pixels.shape, dtype=dtype, device=machine.device))


def uploaded(given: Arrays, machine: Machine) -> Resident:
    """The arrays of another process, copied to this one's device."""
    pixels = torch.from_numpy(given[PIXELS]).to(machine.device)
    features = boundary_values(given)
    return Resident(
        pixels, {n: torch.from_numpy(a).to(machine.device) for n, a in features.items()}
    )
