"""The plan of one stage: what runs at every level, on what is alive, at what multiply-adds.

Made from the level bytes before anything runs; with every level evaluated in float32 the
multiply-adds executed are those planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict


class LayerPlan(BaseModel):
    """One layer at one level, on all images of the stage.

    ``path``: ``dense`` (compacted matrix), ``sparse`` (its nonzeros), ``difference`` (only what the
    next sparser level lacks), ``compact`` (compacted convolution or product) or ``masked`` (masked
    kernel, nothing compacted); ``rows`` and ``columns``: units or channels written and read.
    """

    model_config = ConfigDict(frozen=True)

    level: int
    layer: str
    path: Literal["dense", "sparse", "difference", "summed", "compact", "masked"]
    rows: int
    columns: int
    multiply_adds: int


class StagePlan(BaseModel):
    """A stage's plan: ``images`` at each of ``levels``, level 0 being known.

    A level without a layer has nothing to compute: its circuit says the same of every image.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    images: int
    levels: tuple[int, ...]
    layers: tuple[LayerPlan, ...]

    @property
    def multiply_adds(self) -> int:
        """Of the whole stage."""
        return sum(each.multiply_adds for each in self.layers)

    def by_level(self) -> dict[int, int]:
        """Multiply-adds of every level."""
        found = dict.fromkeys(self.levels, 0)
        for each in self.layers:
            found[each.level] += each.multiply_adds
        return found


def added(plans: Sequence[tuple[int, Sequence[LayerPlan]]]) -> tuple[LayerPlan, ...]:
    """Plans of batches, each so many times, as one: multiply-adds add up, the rest is the first's.

    A path that differs between a whole and a partial batch is named after the whole one.
    """
    total: dict[tuple[int, str], LayerPlan] = {}
    for times, layers in plans:
        for each in layers:
            key, work = (each.level, each.layer), times * each.multiply_adds
            if key in total:
                work += total[key].multiply_adds
            total[key] = total.get(key, each).model_copy(update={"multiply_adds": work})
    return tuple(total[key] for key in sorted(total, key=lambda k: k[0]))
