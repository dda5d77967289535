"""What a sweep will cost, before it runs: multiply-adds, forward-pass equivalents, bytes, seconds.

The unit is the forward-pass equivalent (FPE): multiply-adds of convolutions and linear layers over
those of one unpruned forward pass of the extraction set.  ``fpe_upper`` runs every level on every
image with nothing compacted; ``fpe`` is the estimate for the options given.  How much compaction
leaves depends on the scores: once a category is scored, its plan is exact (`exact_plan`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from circuitcore.engine.executors import executor
from circuitcore.engine.footprint import Counts, predicted
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.engine.stage_plan import StagePlan
from circuitcore.extraction.judging import (
    DENSE_UP_TO,
    is_dense,
    judges,
    reference_csa,
    unpruned_baseline,
)
from circuitcore.extraction.screening import run_at_every_level
from circuitcore.extraction.stage import sweep_stage
from circuitcore.inputs.categories import select
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.pixels import decode
from circuitcore.inputs.read import Inputs, read_inputs
from circuitcore.machine.device import memory_budget, pick
from circuitcore.network.forward import Tally, forward
from circuitcore.network.graph import STAGES, Network
from circuitcore.network.sizes import multiply_adds
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

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


def plan(
    options: Options,
    wanted: Sequence[str],
    probe: bool,
    progress: Progress,
    exact: bool = False,
    inputs: Inputs | None = None,
) -> Plan:
    """Plan the sweep of the wanted categories.  Changes nothing; decodes one image.

    With ``probe``, runs forward passes for a few seconds to expect a time; with ``exact``, scores
    the categories and runs their fc stage to plan every level.  Raises what `read_inputs` raises.
    """
    device = pick(options)
    inputs = inputs or read_inputs(options)
    chosen = select(inputs.categories, wanted)
    network = inputs.model.network
    files = inputs.split("extraction")
    pixels = decode(inputs.root / files[0].path, inputs.model.preprocessing)
    shape = pixels.shape
    per_layer = multiply_adds(network, shape)
    per_layer_target = dict(per_layer)
    per_layer_target[network.last] //= network.outputs  # only the target row
    once = sum(per_layer.values())

    count = len(files)
    dense = options.screen == "off" or (options.screen == "auto" and count <= DENSE_UP_TO)
    steps = [PlanStep(what="unpruned network (shared)", count=1, multiply_adds=once * count,
                      bytes=pixels.nbytes * count, fpe=1.0)]  # fmt: skip
    upper = 0
    estimate = 0.0
    for stage, layers in (("fc", network.layers("fc")), ("conv", network.layers())):
        if not network.layers(stage):
            continue
        levels = len(options.grid(stage)) - 1
        work = sum(per_layer_target[name] for name in layers) * count
        upper += levels * work
        passes: float = levels
        if not dense:
            passes = _passes(levels, count, len(files_of_one(files)), stage, options.stop)
        estimate += LEFT[stage] * passes * work
        steps.append(
            PlanStep(
                what=f"{stage} stage, {levels} levels",
                count=levels,
                multiply_adds=work,
                bytes=network.relevant(stage) * 5,
                fpe=levels * work / (once * count),
            )
        )
    scoring = 3 * once * options.scoring_images  # forward, and backward at twice its cost
    steps.append(PlanStep(what="scoring (not counted in FPE)", count=1, multiply_adds=scoring,
                          bytes=network.relevant() * 5, fpe=0.0))  # fmt: skip
    heldout = sum(per_layer_target.values()) * len(inputs.split("heldout"))
    steps.append(PlanStep(what="held-out test (not counted in FPE)", count=1,
                          multiply_adds=heldout, bytes=0, fpe=0.0))  # fmt: skip

    counts = Counts(count, len(inputs.split("heldout")), len(chosen))
    memory = predicted(network, shape, options, device, counts, memory_budget(options, device))
    boundary = _boundary_bytes(network, shape)
    seconds = None
    if probe:
        rate = _rate(network.to(device), shape, device, once)
        each = estimate + scoring + heldout
        shared = once * (count + len(inputs.split("heldout")))
        seconds = (shared + len(chosen) * each) / rate
    plans: list[CategoryPlan] = []
    if exact:
        prepared = prepare(inputs, options, progress)
        progress.start("planning", len(chosen))
        for category in chosen:
            plans.append(exact_plan(prepared, category.index, category.name))
            progress.advance(1, category.name)
        estimate = sum(p.multiply_adds for p in plans) / len(plans)
    return Plan(
        device=str(device),
        categories=len(chosen),
        fpe=estimate / (once * count),
        fpe_upper=upper / (once * count),
        shared_fpe=1.0,
        multiply_adds=round(estimate),
        memory_bytes=max(memory.values()),
        disk_bytes=len(chosen) * -(-network.relevant() // 8)
        + pixels.nbytes * (count + len(inputs.split("heldout")))
        + boundary * count,
        seconds=seconds,
        steps=steps,
        exact=plans,
    )


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
    stages: list[StagePlan] = []
    network, options = prepared.network, prepared.options
    found = contributions(network, prepared.scoring_images(unit), unit)
    kept: dict[str, Tensor] = {}
    judge = judges(prepared, unit)[0]
    reference = reference_csa(unpruned_baseline(prepared, unit), options.reference)
    with torch.inference_mode():
        for stage in STAGES:
            if not network.layers(stage):
                continue
            assigned = stage_levels(network, stage, found, unit, options)
            runs = executor(prepared, unit, assigned, kept, Tally())
            levels = range(1, len(assigned.pruned))
            stages.append(runs.plan(levels, len(prepared.extraction)))
            if stage == "fc":
                dense = is_dense(prepared)
                swept = sweep_stage(
                    runs, judge, start=judge.unpruned, reference=reference, dense=dense
                )
                kept = assigned.kept(swept.level)
    work = sum(stage.multiply_adds for stage in stages)
    once = prepared.forward_multiply_adds * len(prepared.extraction)
    return CategoryPlan(category=name, stages=tuple(stages), multiply_adds=work, fpe=work / once)


def _boundary_bytes(network: Network, shape: Sequence[int]) -> int:
    from circuitcore.network.sizes import value_sizes

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
