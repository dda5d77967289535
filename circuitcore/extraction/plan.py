"""What a sweep will cost, before it runs: multiply-adds, forward-pass equivalents, bytes, seconds.

The unit is the forward-pass equivalent (FPE): multiply-adds of convolutions and linear layers over
those of one unpruned forward pass of the extraction set.  ``fpe_upper`` runs every level on every
image with nothing compacted; ``fpe`` is the estimate for the options given.  How much compaction
leaves depends on the scores: once a category is scored, its plan is exact (`exact_plan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.engine.footprint import Counts, as_run, predicted
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.engine.probe import HOST, Speed, measured
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
from circuitcore.network.graph import Network
from circuitcore.network.sizes import multiply_adds, value_sizes
from circuitcore.options import Options
from circuitcore.progress import Progress

STOPPED_EARLY = 0.75  # part of the levels a stop rule looks at, where it may stop
# Part of the multiply-adds that compaction leaves, over a default grid, as counted on the bundled
# network (0.25, 0.33) and on an AlexNet trained on Fashion-MNIST (0.09, 0.33).
LEFT = {"fc": 0.2, "conv": 0.33}
# Screened to the first crossing, as counted on the thousand characters of `bench/e2e`: passes over
# all images at the dense levels of the fc stage, what these leave, and how often a convolution is
# pruned at all behind an fc circuit that stands at the same threshold.
CROSSED = 3.0
DENSE_LEFT = 0.7
PRUNED = 0.2


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

    With ``probe``, measures the machine for two seconds to expect a time; with ``exact``, scores
    the categories and runs their fc stage to plan every level.  Raises UsageError for a category
    that is not there, DeviceError where the memory is too little for one image.
    """
    chosen = select(inputs.categories, wanted)
    network, files = inputs.model.network, inputs.split("extraction")
    pixels = inputs.source.pixels(files[0].path, inputs.model.preprocessing)
    work = _work(inputs, options, machine, pixels)
    steps = [*work.stages.values(), work.scoring, work.heldout, *work.apart]
    estimate = sum(work.expected.values())
    heldout = len(inputs.split("heldout"))
    counts = Counts(len(files), heldout, len(chosen))
    memory = predicted(network, pixels.shape, options, machine, counts)
    seconds = None
    if probe:
        speed = measured(inputs, files, pixels, machine)
        seconds = _seconds(speed, work, counts, network.relevant())
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


def _seconds(speed: Speed, work: _Work, counts: Counts, weights: int) -> float:
    """Seconds that decoding, the unpruned network and the categories are expected to take."""
    image = speed.decode + speed.conv * work.conv + speed.fc * work.fc
    category = HOST + speed.weight * weights + speed.fc * work.expected["fc"]
    category += speed.conv * (work.expected["conv"] + work.scoring.multiply_adds)
    return (counts.extraction + counts.heldout) * image + counts.categories * category


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
    """Multiply-adds, by kind: ``once``, a forward pass of one image, and its ``conv`` and ``fc``
    layers as they run, what a pooling copies counted once; ``shared`` by all categories;
    of one category, its ``stages`` and the ``heldout`` test (``expected`` of both, in convolutions
    and in fc layers; at most ``upper``), and what FPE leaves out: ``scoring``, and ``apart`` the
    random masks.
    """

    once: int
    conv: int
    fc: int
    shared: PlanStep
    stages: dict[str, PlanStep]
    heldout: PlanStep
    scoring: PlanStep
    apart: list[PlanStep]
    expected: dict[str, float]
    upper: int


def _work(inputs: Inputs, options: Options, machine: Machine, pixels: np.ndarray) -> _Work:
    """What there is to do, counted from shapes and options for images like ``pixels``."""
    network, files = inputs.model.network, inputs.split("extraction")
    once, count = sum(multiply_adds(network, pixels.shape).values()), len(files)
    lean, _ = as_run(network, pixels.shape, machine)
    per_layer = multiply_adds(lean, pixels.shape)
    per_layer[network.last] //= network.outputs  # only the target row
    conv, fc = (sum(per_layer[n] for n in network.layers(s)) for s in ("conv", "fc"))
    passes = _passes(options, count, len(files_of_one(files)))
    tests = len(inputs.split("heldout"))
    expected = {
        "conv": conv * (count * passes.conv + tests * passes.tested_conv),
        "fc": fc * (count * (passes.fc + passes.conv) + tests * passes.tested_fc),
    }
    upper, stages = 0, {}
    for stage, each in (("fc", fc), ("conv", conv + fc)):
        if not network.layers(stage):
            continue
        levels = len(options.grid(stage)) - 1
        upper += levels * each * count
        stages[stage] = PlanStep(
            what=f"{stage} stage, {levels} levels",
            count=levels,
            multiply_adds=each * count,
            bytes=network.relevant(stage) * 5,
            fpe=levels * each / once,
        )

    tested = (conv + fc) * tests
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
    upper += tested
    shared = PlanStep(what="unpruned network (shared)", count=1, multiply_adds=once * count,
                      bytes=pixels.nbytes * count, fpe=1.0)  # fmt: skip
    return _Work(once, conv, fc, shared, stages, heldout, scoring, apart, expected, upper)


def files_of_one(files: Sequence[ImageFile]) -> list[ImageFile]:
    """The images of the first category among ``files``."""
    return [file for file in files if file.category == files[0].category]


class _Passes(NamedTuple):
    """Expected of one category, in passes over a whole set with nothing compacted: of the fc layers
    in the fc stage, of all in the conv stage, and of conv and fc layers in the held-out test.
    """

    fc: float
    conv: float
    tested_conv: float
    tested_fc: float


def _passes(options: Options, images: int, targets: int) -> _Passes:
    """What a sweep over so many images, ``targets`` of them the category's, is expected to run."""
    levels = {stage: len(options.grid(stage)) - 1 for stage in ("fc", "conv")}
    left = LEFT["conv"]
    if every_level(options, images):
        return _Passes(LEFT["fc"] * levels["fc"], left * levels["conv"], left, left)
    part = (targets + sum(run_at_every_level(images, targets, options.stop))) / images
    if options.stop == "first-crossing":
        looks = part * levels["fc"] * LEFT["fc"]
        fc = min(looks + DENSE_LEFT * CROSSED, LEFT["fc"] * levels["fc"])
        return _Passes(fc, DENSE_LEFT * (part + PRUNED), DENSE_LEFT * PRUNED, DENSE_LEFT)
    looked = {stage: max(1, round(STOPPED_EARLY * count)) for stage, count in levels.items()}
    fc, conv = (min(looked[s], 2 * looked[s] * part + 1) * LEFT[s] for s in ("fc", "conv"))
    return _Passes(fc, conv, left, left)


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
