"""What a sweep will cost, before it runs: multiply-adds, forward-pass equivalents, bytes, seconds.

The unit is the forward-pass equivalent (FPE): multiply-adds of convolutions and linear layers over
those of one unpruned forward pass of the extraction set.  ``fpe_upper`` runs every level on every
image with nothing compacted; ``fpe`` is the estimate for the options given.  How much compaction
leaves depends on the scores: once a category is scored, its plan is exact (`exact_plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.engine.counting import Counting
from circuitcore.engine.executors import Executor
from circuitcore.engine.footprint import Counts, as_run, predicted
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.engine.probe import HOST, Speed, measured
from circuitcore.engine.runner import sizes_of
from circuitcore.engine.stage_plan import StagePlan
from circuitcore.extraction.agreement import sweeps
from circuitcore.extraction.judging import (
    empty_circuit,
    every_level,
    judges,
    reference_of,
    unpruned_baseline,
)
from circuitcore.extraction.planning.expected import LEFT, Expected, PlanStep, expected
from circuitcore.extraction.planning.predict import Prediction, before, predict
from circuitcore.extraction.stage import scored, stage_executors, sweep_stage
from circuitcore.inputs.categories import Category, select
from circuitcore.inputs.read import Inputs
from circuitcore.inputs.shapes import SHAPES
from circuitcore.machine.device import DTYPES, Machine, swept_in
from circuitcore.machine.target import Target, machine_of, target_named
from circuitcore.network.graph import Network
from circuitcore.network.sizes import value_sizes
from circuitcore.options import Options
from circuitcore.progress import Progress


class CategoryPlan(BaseModel):
    """The exact plan of one scored category, every level evaluated on every image.

    ``stages``: each behind the circuit that the one before it chooses.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    stages: tuple[StagePlan, ...]
    multiply_adds: int
    fpe: float


class Plan(BaseModel):
    """The cost of a sweep; ``fpe`` and ``multiply_adds`` are of one category, the rest of the run.

    ``exact``: the plans of scored categories, whose mean ``fpe`` then is; empty before scoring.
    ``target``: seconds on a GPU, predicted from counts alone.
    ``seconds`` is None without a probe; ``memory_bytes`` is the peak of code, weights, levels and
    activations, ``disk_bytes`` the circuits and the decoded images and features cached meanwhile.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    categories: int
    fpe: float
    fpe_upper: float
    shared_fpe: float
    multiply_adds: int
    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    steps: list[PlanStep]
    exact: list[CategoryPlan] = []
    target: Prediction | None = None

    def __repr__(self) -> str:
        seconds = "" if self.seconds is None else f", about {self.seconds:.0f} s"
        return (
            f"Plan of {self.categories} categories: {self.fpe:.1f} FPE each (at most "
            f"{self.fpe_upper:.1f}), {self.memory_bytes / 1e6:.0f} MB of memory{seconds}"
        )


def plan(
    inputs: Inputs,
    options: Options,
    machine: Machine,
    wanted: Sequence[str | int],
    progress: Progress,
    *,
    probe: bool = False,
    exact: bool = False,
    target: Target | None = None,
) -> Plan:
    """Plan the sweep of the wanted categories.  Changes nothing; decodes one image.

    ``target``: of a sweep on that device instead of this machine, which need not have one.
    With ``probe``, measures the machine for two seconds to expect a time; with ``exact``, scores
    the categories and runs their stages but the last to plan every level.  Raises UsageError for a
    category that is not there, DeviceError where the memory is too little for one image.
    """
    chosen = select(inputs.categories, wanted)
    network, files = inputs.model.network, inputs.split("extraction")
    pixels = inputs.source.pixels(files[0].path, inputs.model.preprocessing)
    work = expected(inputs, options, machine, pixels)
    steps = [*work.stages.values(), work.scoring, work.heldout, *work.apart]
    estimate = sum(work.expected.values())
    counts = Counts(len(files), len(inputs.split("heldout")), len(chosen))
    there = target or _here(machine)
    memory = predicted(network, pixels.shape, options, machine, counts)
    speed = measured(inputs, files, pixels, machine) if probe else None
    plans = _exact_plans(inputs, options, machine, chosen, progress) if exact else []
    if exact:
        estimate = sum(p.multiply_adds for p in plans) / len(plans)
        left = LEFT["conv"] if machine.compacts else 1.0
        estimate += left * work.heldout.multiply_adds
    lean, _ = as_run(network, pixels.shape, machine)
    cached = pixels.nbytes + _boundary_bytes(lean, pixels.shape)
    cached *= counts.extraction + counts.heldout
    return Plan(
        device=str(machine.device) if target is None else target.name,
        categories=len(chosen),
        fpe=estimate / (work.once * len(files)),
        fpe_upper=work.upper / (work.once * len(files)),
        shared_fpe=inputs.shared_fpe,
        multiply_adds=round(estimate),
        memory_bytes=max(memory.values()),
        disk_bytes=len(chosen) * -(-network.relevant() // 8) + cached,
        seconds=speed and sum(_seconds(speed, work, counts, network.relevant()).values()),
        steps=[work.shared, *_once(inputs, work.once, pixels.nbytes), *steps],
        exact=plans,
        target=there and _predicted(inputs, options, machine, there, counts, pixels.shape),
    )


def _once(inputs: Inputs, once: int, pixels: int) -> list[PlanStep]:
    """Looking for the images that score targets, of ``pixels`` bytes each; their mean inputs."""
    asked = {
        "images to score on (shared)": inputs.pool is not None,
        "mean inputs (shared)": inputs.averaged,
    }
    count, images = len(inputs.split("scoring")), len(inputs.split("extraction"))
    return [
        PlanStep(what=what, count=1, multiply_adds=once * count, bytes=pixels * count,
                 fpe=count / images)
        for what, wanted in asked.items()
        if wanted
    ]  # fmt: skip


def _here(machine: Machine) -> Target | None:
    """The target that a machine's GPU is, by its name."""
    gpu = machine.device.type == "cuda"
    return target_named(torch.cuda.get_device_name(machine.device)) if gpu else None


def target_machine(target: Target, options: Options) -> Machine:
    """What a sweep on a target computes with."""
    dtype = DTYPES.get(swept_in(options), torch.float32)
    return machine_of(target, dtype, options.precision, options.memory)


def _predicted(
    inputs: Inputs,
    options: Options,
    machine: Machine,
    target: Target,
    counts: Counts,
    shape: tuple[int, ...],
) -> Prediction:
    """Seconds on a target, in the precision asked for and, of a category, in others."""
    network, own = inputs.model.network, swept_in(options)
    images = counts.extraction + counts.heldout
    found = []
    for precision in dict.fromkeys((own, "float32", "tf32", "bfloat16")):
        on = replace(machine, dtype=DTYPES.get(precision, torch.float32))
        sizes = sizes_of(network, shape, options, on, counts)
        found.append(Counting(network, shape, sizes, images, target, precision, on.masked_kernels))
    said = predict(found, options, counts, every=every_level(options, counts.extraction))
    if inputs.model.name == SHAPES:
        said = said.model_copy(update={"before": before(found[0])})
    return said


IMAGES, CONV, FC, REST = "images", "convolutions", "fc layers", "weights and host"


def _seconds(speed: Speed, work: Expected, counts: Counts, weights: int) -> dict[str, float]:
    """Seconds that decoding and the unpruned network are expected to take (`IMAGES`), and of all
    categories convolutions with scoring (`CONV`), fc layers (`FC`), and the rest (`REST`).
    """
    image = speed.decode + speed.conv * work.conv + speed.fc * work.fc
    each = {
        CONV: speed.conv * (work.expected["conv"] + work.scoring.multiply_adds),
        FC: speed.fc * work.expected["fc"],
        REST: HOST + speed.weight * weights,
    }
    images = (counts.extraction + counts.heldout) * image
    return {IMAGES: images, **{part: counts.categories * s for part, s in each.items()}}


def seconds_by_part(
    inputs: Inputs, options: Options, machine: Machine, wanted: Sequence[str | int]
) -> dict[str, float]:
    """The seconds of `plan` with its probe, part by part; measures the machine for two seconds."""
    files = inputs.split("extraction")
    pixels = inputs.source.pixels(files[0].path, inputs.model.preprocessing)
    work = expected(inputs, options, machine, pixels)
    chosen = select(inputs.categories, wanted)
    counts = Counts(len(files), len(inputs.split("heldout")), len(chosen))
    speed = measured(inputs, files, pixels, machine)
    return _seconds(speed, work, counts, inputs.model.network.relevant())


def _exact_plans(
    inputs: Inputs,
    options: Options,
    machine: Machine,
    chosen: Sequence[Category],
    progress: Progress,
) -> list[CategoryPlan]:
    prepared = prepare(inputs, options, machine, progress)
    progress.start("planning", len(chosen))
    plans = []
    for category in chosen:
        plans.append(exact_plan(prepared, category.index, category.name))
        progress.advance(1, category.name)
    return plans


def exact_plan(prepared: Prepared, unit: int, name: str) -> CategoryPlan:
    """Plan every level of one category: scores it, and runs all its stages but the last.

    Cost: scoring, and these stages' own multiply-adds.
    """
    work = scored(prepared, unit)
    sweep = _sweeps(prepared, unit) if prepared.inputs.aim is None else sweeps(prepared, unit)
    kept: dict[str, Tensor] = {}
    stages: list[StagePlan] = []
    with torch.inference_mode():
        for runs in stage_executors(prepared, unit, work, kept):
            levels = range(1, len(runs.assigned.pruned))
            stages.append(runs.plan(levels, len(prepared.extraction)))
            if len(stages) < len(prepared.runner.network.stages):
                kept |= runs.assigned.kept(sweep(runs))
    total = sum(stage.multiply_adds for stage in stages)
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction)
    return CategoryPlan(category=name, stages=tuple(stages), multiply_adds=total, fpe=total / once)


def _sweeps(prepared: Prepared, unit: int) -> Callable[[Executor], int]:
    """Sweeps one stage of a category after another; each time the level chosen."""
    options = prepared.options
    judge, heldout_judge = judges(prepared, unit)
    unpruned = unpruned_baseline(judge, heldout_judge, options.bias)
    empty = empty_circuit(prepared, unit, judge, heldout_judge)
    reference = reference_of(unpruned, empty.extraction, options)
    start, error = judge.unpruned, None

    def sweep(runs: Executor) -> int:
        nonlocal start, error
        swept = sweep_stage(
            prepared, runs, judge, start=start, reference=reference, start_error=error
        )
        start, error = swept.activation, swept.error
        return swept.level

    return sweep


def _boundary_bytes(network: Network, shape: Sequence[int]) -> int:
    sizes = value_sizes(network, shape)
    return 4 * sum(sizes[name] for name in network.boundary())
