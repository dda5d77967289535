"""What `plan` says of a sweep, part by part, beside what a profile measured of the same parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from circuitcore.extraction.planning.plan import CONV, FC, IMAGES, REST, plan, seconds_by_part
from circuitcore.inputs.read import Inputs
from circuitcore.jobs.profiling.attribution import A_CATEGORY, Attributed
from circuitcore.machine.device import Machine
from circuitcore.options import Options
from circuitcore.progress import Silent

ALL, RUN = "all that was predicted", "the run"
UNPRUNED = ("unpruned extraction", "unpruned heldout")
MASKS, SCORING, HELD_OUT = "random masks", "scoring", "held-out"
TESTED = ("test", "commit")
LEVELS = ("levels", "scoring and levels")
AS_MEASURED = {  # parts of a prediction from counts that have stages of their own
    "held-out test": (HELD_OUT,),
    MASKS: (MASKS,),
    "scoring, levels": (SCORING, *LEVELS),
    "test, commit": TESTED,
    "unpruned network": UNPRUNED,
}
LOOKS = ("fc stage", "conv stage", "certification", "float32 rechecks")


class Gap(BaseModel):
    """Seconds of a part of a run: as predicted (None: not at all), and as measured."""

    model_config = ConfigDict(frozen=True)

    part: str
    predicted: float | None
    measured: float


class Predicted(BaseModel):
    """Seconds by part; ``behind``: layers from the cached boundary values on; ``stages``: by name.

    ``counted``: predicted from counts for a GPU, not measured by a probe.
    """

    model_config = ConfigDict(frozen=True)

    parts: dict[str, float]
    behind: list[str]
    stages: list[str]
    counted: bool = False


def predicted(
    inputs: Inputs, options: Options, on: Machine, wanted: Sequence[str | int]
) -> Predicted:
    """What `plan` says of this sweep, in two seconds of measuring; on a known GPU from counts."""
    network = inputs.model.network
    behind, stages = sorted(network.after_boundary()), list(network.stages)
    said = plan(inputs, options, on, wanted, Silent()) if on.device.type == "cuda" else None
    if said is None or said.target is None:
        parts = seconds_by_part(inputs, options, on, wanted)
        return Predicted(parts=parts, behind=behind, stages=stages)
    parts = {part.part: part.seconds * said.categories for part in said.target.category}
    parts |= {part.part: part.seconds for part in said.target.run}
    return Predicted(parts=parts, behind=behind, stages=stages, counted=True)


def gaps(said: Predicted, found: Attributed) -> list[Gap]:
    """Each part as predicted and as measured; what was not predicted at the end."""
    rows = _counted(said, found) if said.counted else _probed(said, found)
    whole = sum(row.predicted or 0.0 for row in rows)
    part = sum(row.measured for row in rows if row.predicted is not None)
    masks = _stages(found, lambda stage: stage == MASKS)
    if not any(row.part == MASKS for row in rows):
        rows.append(Gap(part=MASKS, predicted=None, measured=masks))
    left = found.wall - sum(row.measured for row in rows)
    rows.append(Gap(part="all else of the run", predicted=None, measured=max(left, 0.0)))
    return [*rows, Gap(part=ALL, predicted=whole, measured=part),
            Gap(part=RUN, predicted=None, measured=found.wall)]  # fmt: skip


def _stages(found: Attributed, chosen: Callable[[str], bool]) -> float:
    """Seconds of stages, on whichever thread."""
    own = sum(each.seconds for path, each in found.stages.items() if chosen(path[-1]))
    return own + sum(each.seconds for path, each in found.beside.items() if chosen(path[-1]))


def _probed(said: Predicted, found: Attributed) -> list[Gap]:
    """Parts as `seconds_by_part` has them: layers of a category by their side of the boundary."""
    taken = {CONV: 0.0, FC: 0.0}
    for (stage, layer), each in found.layers.items():
        if stage in (*said.stages, HELD_OUT):
            taken[FC if layer in said.behind else CONV] += each.seconds
    taken[CONV] += _stages(found, lambda stage: stage == SCORING)
    categories = sum(each.seconds for path, each in found.stages.items() if path[-1] == A_CATEGORY)
    masks = _stages(found, lambda stage: stage == MASKS)
    measured = {
        IMAGES: _stages(found, lambda stage: stage in UNPRUNED),
        **taken,
        REST: max(0.0, categories - masks - sum(taken.values())),
    }
    return [Gap(part=p, predicted=s, measured=measured[p]) for p, s in said.parts.items()]


def _counted(said: Predicted, found: Attributed) -> list[Gap]:
    """Parts of a prediction from counts; looks at levels together, as they are not told apart."""
    looks = sum(said.parts.get(part, 0.0) for part in LOOKS)
    rows = [Gap(part="looks at levels", predicted=looks,
                measured=_stages(found, lambda stage: stage in said.stages))]  # fmt: skip
    for part, own in AS_MEASURED.items():
        if part in said.parts:
            seconds = _stages(found, lambda stage, own=own: stage in own)  # type: ignore[misc]
            rows.append(Gap(part=part, predicted=said.parts[part], measured=seconds))
    return rows
