"""What a sweep will cost, before it runs: multiply-adds, forward-pass equivalents, bytes, seconds.

The unit is the forward-pass equivalent (FPE): multiply-adds of convolutions and linear layers over
those of one unpruned forward pass of the extraction set.  ``fpe_upper`` runs every level on every
image with nothing compacted; ``fpe`` is the estimate for the options given.  How much compaction
leaves depends on the scores: once a category is scored, its plan is exact (`exact_plan`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.engine.footprint import Counts, as_run, predicted
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.engine.stage_plan import StagePlan
from circuitcore.extraction.judging import (
    empty_circuit,
    every_level,
    judges,
    reference_of,
    unpruned_baseline,
)
from circuitcore.extraction.screening import run_at_every_level
from circuitcore.extraction.stage import scored, stage_executors, sweep_stage
from circuitcore.inputs.categories import Category, select
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.read import Inputs
from circuitcore.machine.device import Machine
from circuitcore.network.forward import forward
from circuitcore.network.graph import Network
from circuitcore.network.sizes import multiply_adds, value_sizes
from circuitcore.options import Options
from circuitcore.progress import Progress

STOPPED_EARLY = 0.75  # part of the levels a stop rule looks at, where it may stop
# Part of the multiply-adds that compaction leaves, over a default grid, as counted on the bundled
# network (0.25, 0.33) and on an AlexNet trained on Fashion-MNIST (0.09, 0.33).
LEFT = {"fc": 0.2, "conv": 0.33}


class PlanStep(BaseModel):
    """One kind of work: ``count`` passes of ``multiply_adds`` each; ``fpe`` of all of them."""

    model_config = ConfigDict(frozen=True)

    what: str
    count: int
    multiply_adds: int
    bytes: int
    fpe: float


class CategoryPlan(BaseModel):
    """The exact plan of one scored category, every level evaluated on every image.

    ``stages``: the fc stage, then the conv stage behind the fc circuit that the first chooses.
    """

    model_config = ConfigDict(frozen=True)

    category: str
    stages: tuple[StagePlan, ...]
    multiply_adds: int
    fpe: float


class Plan(BaseModel):
    """The cost of a sweep; ``fpe`` and ``multiply_adds`` are of one category, the rest of the run.

    ``exact``: the plans of scored categories, whose mean ``fpe`` then is; empty before scoring.
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
) -> Plan:
    """Plan the sweep of the wanted categories.  Changes nothing; decodes one image.

    With ``probe``, runs forward passes for a second to expect a time; with ``exact``, scores the
    categories and runs their fc stage to plan every level.  Raises UsageError for a category that
    is not there, DeviceError where the memory is too little for one image.
    """
    chosen = select(inputs.categories, wanted)
    network, files = inputs.model.network, inputs.split("extraction")
    pixels = inputs.source.pixels(files[0].path, inputs.model.preprocessing)
    work = _work(inputs, options, machine, pixels)
    steps = [*work.stages.values(), work.scoring, work.heldout, *work.apart]
    estimate = work.estimate
    heldout = len(inputs.split("heldout"))
    counts = Counts(len(files), heldout, len(chosen))
    memory = predicted(network, pixels.shape, options, machine, counts)
    seconds = None
    if probe:
        rate = _rate(network.to(machine.device), pixels.shape, machine.device, work.once)
        each = estimate + work.scoring.multiply_adds
        shared = work.once * (len(files) + heldout)
        seconds = (shared + len(chosen) * each) / rate
    plans = _exact_plans(inputs, options, machine, chosen, progress) if exact else []
    if exact:
        estimate = sum(p.multiply_adds for p in plans) / len(plans)
        estimate += LEFT["conv"] * work.heldout.multiply_adds
    decoded = pixels.nbytes * (len(files) + heldout)
    lean, _ = as_run(network, pixels.shape, machine)
    features = _boundary_bytes(lean, pixels.shape) * (len(files) + heldout)
    return Plan(
        device=str(machine.device),
        categories=len(chosen),
        fpe=estimate / (work.once * len(files)),
        fpe_upper=work.upper / (work.once * len(files)),
        shared_fpe=1.0,
        multiply_adds=round(estimate),
        memory_bytes=max(memory.values()),
        disk_bytes=len(chosen) * -(-network.relevant() // 8) + decoded + features,
        seconds=seconds,
        steps=[work.shared, *steps],
        exact=plans,
    )


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


class _Work(NamedTuple):
    """Multiply-adds, by kind: ``once``, a forward pass of one image; ``shared`` by all categories;
    of one category, its ``stages`` and the ``heldout`` test (expected: ``estimate``, at most:
    ``upper``), and what FPE leaves out: ``scoring``, and ``apart`` the random masks.
    """

    once: int
    shared: PlanStep
    stages: dict[str, PlanStep]
    heldout: PlanStep
    scoring: PlanStep
    apart: list[PlanStep]
    estimate: float
    upper: int


def _work(inputs: Inputs, options: Options, machine: Machine, pixels: np.ndarray) -> _Work:
    """What there is to do, counted from shapes and options for images like ``pixels``."""
    network, files = inputs.model.network, inputs.split("extraction")
    once, count = sum(multiply_adds(network, pixels.shape).values()), len(files)
    lean, _ = as_run(network, pixels.shape, machine)
    per_layer = multiply_adds(lean, pixels.shape)
    per_layer[network.last] //= network.outputs  # only the target row
    upper, estimate, stages = 0, 0.0, {}
    for stage, layers in (("fc", network.layers("fc")), ("conv", network.layers())):
        if not network.layers(stage):
            continue
        levels = len(options.grid(stage)) - 1
        work = sum(per_layer[name] for name in layers) * count
        upper += levels * work
        passes: float = levels
        if not every_level(options, count):
            passes = _passes(levels, count, len(files_of_one(files)), stage, options.stop)
        estimate += LEFT[stage] * passes * work
        stages[stage] = PlanStep(
            what=f"{stage} stage, {levels} levels",
            count=levels,
            multiply_adds=work,
            bytes=network.relevant(stage) * 5,
            fpe=levels * work / (once * count),
        )

    tested = sum(per_layer.values()) * len(inputs.split("heldout"))
    heldout = PlanStep(what="held-out test", count=1, multiply_adds=tested, bytes=0,
                       fpe=tested / (once * count))  # fmt: skip
    scoring = PlanStep(
        what="scoring (not counted in FPE)",
        count=1,
        multiply_adds=3 * once * options.scoring_images,  # forward, backward at twice its cost
        bytes=network.relevant() * 5,
        fpe=0.0,
    )
    looked = len(files_of_one(files))
    looked += sum(run_at_every_level(count, looked, "sparsest-above"))
    apart = [
        PlanStep(what="random masks (not counted in FPE)", count=options.random_masks,
                 multiply_adds=min(looked, count) * sum(per_layer.values()), bytes=0, fpe=0.0)
    ] if options.random_masks else []  # fmt: skip
    estimate += LEFT["conv"] * tested
    upper += tested
    shared = PlanStep(what="unpruned network (shared)", count=1, multiply_adds=once * count,
                      bytes=pixels.nbytes * count, fpe=1.0)  # fmt: skip
    return _Work(once, shared, stages, heldout, scoring, apart, estimate, upper)


def files_of_one(files: Sequence[ImageFile]) -> list[ImageFile]:
    """The images of the first category among ``files``."""
    return [file for file in files if file.category == files[0].category]


def _passes(levels: int, images: int, targets: int, stage: str, stop: str) -> float:
    """Passes over all images that screening is expected to need, certification included."""
    looked_at = max(1, round(levels * STOPPED_EARLY))
    if stage == "fc":  # levels share a pass
        return looked_at
    part = (targets + sum(run_at_every_level(images, targets, stop))) / images
    return min(looked_at, 2 * looked_at * part + 1)


def exact_plan(prepared: Prepared, unit: int, name: str) -> CategoryPlan:
    """Plan every level of one category: scores it, and runs its fc stage for the circuit chosen.

    Cost: scoring, and the fc stage's own multiply-adds.
    """
    options, work = prepared.options, scored(prepared, unit)
    judge, heldout_judge = judges(prepared, unit)
    unpruned = unpruned_baseline(judge, heldout_judge, options.bias)
    empty = empty_circuit(prepared, unit, judge, heldout_judge)
    reference = reference_of(unpruned, empty.extraction, options)
    kept: dict[str, Tensor] = {}
    stages: list[StagePlan] = []
    with torch.inference_mode():
        for runs in stage_executors(prepared, unit, work, kept):
            levels = range(1, len(runs.assigned.pruned))
            stages.append(runs.plan(levels, len(prepared.extraction)))
            if runs.assigned.stage == "fc":
                start = judge.unpruned
                swept = sweep_stage(prepared, runs, judge, start=start, reference=reference)
                kept |= runs.assigned.kept(swept.level)
    total = sum(stage.multiply_adds for stage in stages)
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction)
    return CategoryPlan(category=name, stages=tuple(stages), multiply_adds=total, fpe=total / once)


def _boundary_bytes(network: Network, shape: Sequence[int]) -> int:
    sizes = value_sizes(network, shape)
    return 4 * sum(sizes[name] for name in network.boundary())


@torch.inference_mode()
def _rate(network: Network, shape: Sequence[int], device: torch.device, once: int) -> float:
    """Multiply-adds a second of unpruned forward passes, the best of a second's worth of them."""
    count = max(1, min(64, int(2e10 / once)))
    images = torch.zeros((count, *shape), device=device)
    best = float("inf")
    stop = time.perf_counter() + 1.0
    while time.perf_counter() < stop:
        began = time.perf_counter()
        forward(network, {"input": images}, [network.last])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return count * once / best
