"""Which units circuits use: those that a kept weight leads into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitcore.progress import Progress
from circuitcore.runs.circuitfile import read_shapes, stored_mask
from circuitcore.runs.folder import RunFolder


@dataclass(frozen=True)
class Usage:
    """Which units a kept weight leads into: ``used[layer]`` bool [circuits, units], in the order
    of ``units``, the output units (or targets) whose circuits they are.  Without the last layer,
    whose one row is each circuit's own.
    """

    units: Sequence[int]
    used: Mapping[str, np.ndarray]

    def shared(self, unit: int) -> dict[str, np.ndarray]:
        """How many circuits but that of ``unit`` use each unit, int64 by layer."""
        others = np.array([u != unit for u in self.units])
        return {name: used[others].sum(0) for name, used in self.used.items()}


def usage(run: RunFolder, units: Sequence[int], progress: Progress) -> Usage:
    """That of the circuits of these units, one or more.  Cost: every mask is read once."""
    shapes, last = read_shapes(run.path(units[0])), run.manifest["model"]["last"]
    names = [name for name in shapes if name != last]
    found = {name: np.zeros((len(units), shapes[name][0]), bool) for name in names}
    progress.start("units that circuits share", len(units))
    for place, unit in enumerate(units):
        for name in names:
            count, each = shapes[name][0], math.prod(shapes[name][1:])
            found[name][place] = used(stored_mask(run.path(unit), name)[:], count, each)
        progress.advance(1)
    return Usage(units, found)


def used(packed: np.ndarray, units: int, each: int) -> np.ndarray:
    """Whether any of the ``each`` weights into each of ``units`` is kept, bool [units].

    ``packed``: a layer's mask; units of whole bytes are not unpacked.
    """
    if each % 8:
        packed = np.unpackbits(packed, count=units * each)
    return np.asarray(packed.reshape(units, -1).any(axis=1))
