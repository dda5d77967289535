"""A set of images with what the unpruned network makes of them; given from process to process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitcore.inputs.decoding import PIXELS
from circuitcore.inputs.image_files import ImageFile
from circuitcore.machine.scratch import Scratch

Arrays = Mapping[str, np.ndarray]
LOGITS = "logits"  # arrays of a scratch that are neither these nor pixels are boundary values


@dataclass(frozen=True)
class Largest:
    """The two largest logits of N images, ``first`` >= ``second`` float32 [N], and whose is first.

    ``unit``: int64 [N].  All a judge needs of the other outputs, whatever its category.
    """

    first: Tensor
    second: Tensor
    unit: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Largest:
        """From logits [N, K]; with one output alone ``second`` is -inf."""
        values, units = logits.topk(min(2, logits.shape[1]), dim=1)
        alone = torch.full_like(values[:, 0], -torch.inf)
        return cls(values[:, 0], values[:, 1] if logits.shape[1] > 1 else alone, units[:, 0])

    def others(self, unit: int) -> Tensor:
        """The largest logit of all outputs but ``unit``: float32 [N]."""
        return torch.where(self.unit == unit, self.second, self.first)


@dataclass(frozen=True)
class Split:
    """One set of N images, decoded, with what the unpruned network makes of them.

    ``pixels`` uint8 [N, channels, height, width]; ``labels`` int64 [N], output units; ``logits``
    float32 [N, K]; ``features``: float32 [N, ...] values at the boundary between conv and fc stage
    by name (empty unless asked for), memory-mapped; ``first``: which of the run's images is its
    first.
    """

    pixels: np.ndarray
    labels: Tensor
    logits: Tensor
    features: dict[str, np.ndarray]
    first: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def largest(self) -> Largest:
        """The two largest logits of every image; found once."""
        return Largest.of(self.logits)


def give_on(scratch: Scratch, splits: Sequence[Split]) -> None:
    """Complete a ``scratch`` of pixels and boundary values for `taken_over` in another process."""
    logits = torch.cat([split.logits for split in splits]).numpy()
    scratch.array(LOGITS, logits.shape, logits.dtype)[:] = logits


def boundary_values(given: Arrays) -> dict[str, np.ndarray]:
    """Those of a scratch's arrays that are values at the boundary, by name."""
    return {name: array for name, array in given.items() if name not in (PIXELS, LOGITS)}


def taken_over(
    given: Arrays, extraction: Sequence[ImageFile], heldout: Sequence[ImageFile]
) -> tuple[Split, Split]:
    """The extraction and held-out set of another process, from the arrays of its scratch."""
    pixels, count = given[PIXELS], len(extraction)
    logits = torch.from_numpy(given[LOGITS].copy())
    features = boundary_values(given)

    def part(rows: slice, files: Sequence[ImageFile]) -> Split:
        mine = {name: array[rows] for name, array in features.items()}
        return Split(pixels[rows], labels_of(files), logits[rows], mine, rows.start or 0)

    return part(slice(count), extraction), part(slice(count, None), heldout)


def labels_of(files: Sequence[ImageFile]) -> Tensor:
    """Output units of images: int64 [N]."""
    return torch.tensor([file.category for file in files])
