"""Profile a sweep, or read a trace that was kept: one document either way."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from circuitcore.engine.footprint import must_compile
from circuitcore.errors import CircuitcoreError, InputError, PartialError, UsageError
from circuitcore.inputs.read import read_inputs
from circuitcore.jobs.job import sweep
from circuitcore.jobs.profiling.attribution import attribute
from circuitcore.jobs.profiling.chrome import read_chrome, read_told
from circuitcore.jobs.profiling.document import Profile, profile_of
from circuitcore.jobs.profiling.nsight import device_name, read_nsight
from circuitcore.jobs.profiling.peaks import Peaks, peaks_of, sheet
from circuitcore.jobs.profiling.predicted import Predicted, gaps, predicted
from circuitcore.jobs.profiling.recording import (
    REPORT,
    SQLITE,
    exported,
    nsys,
    recording,
    under_nsys,
)
from circuitcore.jobs.profiling.trace import Trace
from circuitcore.machine.device import machine
from circuitcore.machine.state import undisturbed
from circuitcore.machine.target import target_named
from circuitcore.options import Options
from circuitcore.progress import Progress

TORCH, NSYS, AUTO = "torch", "nsys", "auto"
COMPILED = "CPU kernels were compiled meanwhile, once on this machine: profile again without that"


@dataclass(frozen=True)
class Wanted:
    """A sweep to profile: its options and categories, and its arguments as they were typed."""

    options: Options
    categories: Sequence[str]
    arguments: Sequence[str]

    @property
    def command(self) -> str:
        """As it would be typed."""
        return " ".join(("circuitcore sweep", *map(shlex.quote, self.arguments)))


class Told(BaseModel):
    """What a trace is kept with: what it is of, and what it is held against."""

    command: str = "circuitcore sweep"
    peaks: Peaks | None = None
    predicted: Predicted | None = None
    notes: list[str] = []


@dataclass(frozen=True)
class Profiled:
    """A profile, and what ended the sweep before all of it was done."""

    profile: Profile
    failed: CircuitcoreError | int | None = None


def chosen_profiler(asked: str) -> str:
    """``torch`` or ``nsys``; of ``auto`` nsys where it is and there is a GPU to look at.

    Raises DeviceError where nsys is asked for and is not on PATH.
    """
    if asked == NSYS:
        nsys()
    if asked != AUTO:
        return asked
    try:
        nsys()
    except CircuitcoreError:
        return TORCH
    return NSYS if torch.cuda.is_available() else TORCH


def profiled(wanted: Wanted, profiler: str, kept: Path | None, progress: Progress) -> Profiled:
    """Sweep as ``wanted`` says with a profiler watching; where its time went.

    ``profiler``: as `chosen_profiler` takes it; ``kept``: where the trace is to stay.  Without
    ``--out`` the run folder is a temporary one, so that nothing is taken over from an earlier run.
    Raises what `sweep` raises before any category is done.
    """
    options = wanted.options
    if options.workers > 1:
        raise UsageError(f"--workers {options.workers}: a profile is of one process: --workers 1")
    profiler = chosen_profiler(profiler)
    with tempfile.TemporaryDirectory(prefix="circuitcore-profile-") as scratch, undisturbed():
        here, alone = Path(scratch), list[str]()
        if options.out is None:
            options, alone = replace(options, out=here / "run"), ["--out", str(here / "run")]
        on, inputs = machine(options), read_inputs(options)
        peaks = peaks_of(on)
        told = Told(
            command=wanted.command,
            predicted=predicted(inputs, options, on, wanted.categories),
            peaks=peaks,
            notes=[COMPILED] * must_compile(on),
        )
        if profiler == NSYS:
            report = kept or here / f"trace{REPORT}"
            code = under_nsys([*alone, *wanted.arguments], report)
            return Profiled(_document(read_nsight(exported(report)), NSYS, told), code or None)
        path, failed = kept or here / "trace.json", None
        with recording(path, lambda: told.model_dump_json(), on.device.type == "cuda"):
            try:
                sweep(options, wanted.categories, progress)
            except PartialError as error:
                failed = error
            told.peaks = peaks_of(on).or_better(peaks)
        return Profiled(_document(read_chrome(path), TORCH, told), failed)


def read_profile(path: Path) -> Profile:
    """The profile in a kept trace: torch's JSON, or a report or SQLite export of Nsight Systems.

    Raises InputError where it is neither.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix in (REPORT, SQLITE):
        export = exported(path) if path.suffix == REPORT else path
        target = target_named(name := device_name(export))
        peaks = sheet(target, name, "bfloat16") if target else None
        notes = [f"roofline: {name}'s data sheet in bfloat16"] if target else []
        return _document(read_nsight(export), NSYS, Told(peaks=peaks, notes=notes))
    trace = read_chrome(path)
    try:
        told = Told.model_validate(read_told(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: what circuitcore kept in it is damaged: {first['msg']}"
        ) from None
    return _document(trace, TORCH, told)


def _document(trace: Trace, profiler: str, told: Told) -> Profile:
    found = attribute(trace)
    notes = list(told.notes)
    if found.wall == 0:
        raise InputError("the trace has no range of circuitcore in it: there is nothing to tell")
    return profile_of(
        found,
        profiler=profiler,
        command=told.command,
        peaks=told.peaks,
        gaps=gaps(told.predicted, found) if told.predicted else [],
        notes=notes,
    )
