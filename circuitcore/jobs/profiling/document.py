"""A profile as one document: what ``circuitcore profile`` prints, and keeps as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from circuitcore.jobs.profiling.attribution import Attributed, Sum
from circuitcore.jobs.profiling.peaks import Peaks
from circuitcore.jobs.profiling.predicted import Gap

SCHEMA: Literal["circuitcore.profile/1"] = "circuitcore.profile/1"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class StageRow(_Row):
    """A run, category or stage: ``path`` from the run down, seconds with and without those inside.

    ``device_seconds``: of what it asked a GPU for by itself; None where there is none.
    """

    path: tuple[str, ...]
    calls: int
    seconds: float
    own_seconds: float
    device_seconds: float | None = None


class WorkRow(_Row):
    """A layer in a stage, or a kernel: seconds, work as executed, and where that lies.

    ``roofline``: the least time that the device's peaks allow for the work, over the time taken;
    ``bound``: which peak that is. None where no work was told.
    """

    name: str
    stage: str | None
    calls: int
    seconds: float
    multiply_adds: int
    bytes: int
    multiply_adds_per_second: float | None = None
    bytes_per_second: float | None = None
    roofline: float | None = None
    bound: str | None = None


class LevelRow(_Row):
    """A level of a stage: how many runs of it, or of its layers, and their seconds."""

    stage: str
    level: int
    calls: int
    seconds: float


class Profile(BaseModel):
    """Where a sweep's time went.

    ``wall_seconds`` of the run; ``uncovered``: the part of it in no range inside the run and its
    categories; ``device_busy``: the part in which anything ran on a GPU (None without one).
    ``beside``: stages on other threads.  ``gaps``: what `plan` had said, and what it took.
    """

    model_config = ConfigDict(frozen=True)

    schema_: Literal["circuitcore.profile/1"] = Field(SCHEMA, alias="schema")
    profiler: str
    command: str
    wall_seconds: float
    uncovered: float
    device_busy: float | None
    peaks: Peaks | None
    stages: list[StageRow]
    beside: list[StageRow]
    levels: list[LevelRow]
    layers: list[WorkRow]
    kernels: list[WorkRow]
    gaps: list[Gap]
    notes: list[str]


def profile_of(
    found: Attributed,
    *,
    profiler: str,
    command: str,
    peaks: Peaks | None,
    gaps: list[Gap],
    notes: Iterable[str] = (),
) -> Profile:
    """The document of what was attributed, longest first."""
    wall = found.wall or 1.0
    return Profile(
        profiler=profiler,
        command=command,
        wall_seconds=found.wall,
        uncovered=found.uncovered / wall,
        device_busy=found.busy / wall if found.on_device else None,
        peaks=peaks,
        stages=[_stage(path, each, found) for path, each in _as_tree(found.stages)],
        beside=[_stage(path, each, None) for path, each in _longest(found.beside)],
        levels=[
            LevelRow(stage=stage, level=int(level), calls=each.calls, seconds=each.seconds)
            for (stage, level), each in sorted(found.levels.items(), key=_by_level)
            if level != "None"
        ],
        layers=[_work(name, stage, each, peaks) for (stage, name), each in _longest(found.layers)],
        kernels=[_work(name, None, each, peaks) for (name,), each in _longest(found.kernels)],
        gaps=gaps,
        notes=list(notes),
    )


Items = list[tuple[tuple[str, ...], Sum]]


def _longest(sums: Mapping[tuple[str, ...], Sum]) -> Items:
    return sorted(sums.items(), key=lambda item: -item[1].seconds)


def _by_level(item: tuple[tuple[str, ...], Sum]) -> tuple[str, int]:
    stage, level = item[0]
    return stage, -1 if level == "None" else int(level)


def _as_tree(sums: Mapping[tuple[str, ...], Sum]) -> Items:
    """Each path in front of those inside it, the longer first among those in the same one."""

    def place(path: tuple[str, ...]) -> list[tuple[float, str]]:
        outer = [path[: k + 1] for k in range(len(path))]
        return [(-sums[each].seconds if each in sums else 0.0, each[-1]) for each in outer]

    return sorted(sums.items(), key=lambda item: place(item[0]))


def _stage(path: tuple[str, ...], each: Sum, found: Attributed | None) -> StageRow:
    device = None
    if found is not None and found.on_device:
        device = found.device[path].seconds if path in found.device else 0.0
    return StageRow(
        path=path,
        calls=each.calls,
        seconds=each.seconds,
        own_seconds=each.own,
        device_seconds=device,
    )


def _work(name: str, stage: str | None, each: Sum, peaks: Peaks | None) -> WorkRow:
    row = WorkRow(
        name=name,
        stage=stage,
        calls=each.calls,
        seconds=each.seconds,
        multiply_adds=each.multiply_adds,
        bytes=each.bytes,
    )
    if each.seconds <= 0 or not (each.multiply_adds or each.bytes):
        return row
    rates = {
        "multiply_adds_per_second": each.multiply_adds / each.seconds,
        "bytes_per_second": each.bytes / each.seconds,
    }
    if peaks is not None:
        least, bound = peaks.least(each.multiply_adds, each.bytes)
        rates |= {"roofline": least / each.seconds, "bound": bound}  # type: ignore[dict-item]
    return row.model_copy(update=rates)
