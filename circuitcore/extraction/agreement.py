"""Agreement: what the circuits of a target that is no category are judged by.

A unit has no label that its circuit could get right.  It has its values a_n on a set of images, and
a circuit is as good as its own values follow the unpruned network's: in their order and spacing
(``correlation``), in their order alone (``spearman``), or as they are (``error``, the share of
their variance that is not lost).  All arithmetic is float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from circuitcore.engine.executors import Executor
from circuitcore.engine.passes import Kept, activations
from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Split
from circuitcore.extraction.accuracy import SLACK, choose_level
from circuitcore.extraction.circuit import Extracted, cost_of, once
from circuitcore.extraction.floor import random_mask
from circuitcore.extraction.stage import Scored, scored, stage_executors
from circuitcore.kernels.spans import span
from circuitcore.network.forward import Tally
from circuitcore.records import (
    Agreement,
    Cost,
    Target,
    TargetCircuit,
    TargetLevel,
    TargetMasks,
    TargetStage,
)
from circuitcore.scoring.seeds import unit_seed

CONSTANT = "the unpruned values are all equal"
RESAMPLES = 2_000
BLOCK = 1 << 22  # numbers that are resampled at once: some 100 MB


def agreement(judge: str, values: np.ndarray, unpruned: np.ndarray) -> np.ndarray:
    """How well each row of ``values`` [..., N] follows ``unpruned`` [N] or [..., N]: float64 [...].

    ``correlation``: Pearson's r; ``spearman``: r of the ranks, equal values sharing theirs;
    ``error``: 1 - sum (a - a0)^2 / sum (a0 - mean a0)^2.  NaN where it is undefined: where the
    unpruned values are all equal, or for r those of the row.
    """
    a, b = np.asarray(values, np.float64), np.asarray(unpruned, np.float64)
    if judge == "spearman":
        a, b = rankdata(a, axis=-1), rankdata(b, axis=-1)
    spread = ((b - b.mean(-1, keepdims=True)) ** 2).sum(-1)
    spread = np.where(np.ptp(b, axis=-1) > 0, spread, 0.0)  # a mean of equal numbers is rounded
    with np.errstate(divide="ignore", invalid="ignore"):
        if judge == "error":
            lost = ((a - b) ** 2).sum(-1)
            return np.where(spread > 0, 1 - lost / spread, np.nan)
        moved = a - a.mean(-1, keepdims=True)
        both = (moved * (b - b.mean(-1, keepdims=True))).sum(-1)
        own = np.where(np.ptp(a, axis=-1) > 0, (moved**2).sum(-1), 0.0)
        return np.where((own > 0) & (spread > 0), both / np.sqrt(own * spread), np.nan)


def value_of(judge: str, values: np.ndarray, unpruned: np.ndarray) -> float | None:
    """`agreement` of one row [N]; None where it is undefined."""
    found = float(agreement(judge, values, unpruned))
    return found if np.isfinite(found) else None


def interval(
    judge: str, values: np.ndarray, unpruned: np.ndarray, seed: int
) -> tuple[float, float] | None:
    """Bootstrap 95 % interval of `agreement` over the images [N].

    None where it is undefined in over half of the resamples.
    """
    count = len(unpruned)
    generator = np.random.default_rng([seed, 95])
    found = []
    for start in range(0, RESAMPLES, step := max(1, BLOCK // max(count, 1))):
        size = min(step, RESAMPLES - start), count
        drawn = generator.integers(0, count, size)
        found.append(agreement(judge, values[drawn], unpruned[drawn]))
    every = np.concatenate(found)
    every = every[np.isfinite(every)]
    if len(every) < RESAMPLES / 2:
        return None
    low, high = np.quantile(every, [0.025, 0.975])
    return float(low), float(high)


def as_good(value: float | None, than: float | None) -> bool:
    """Whether one value is no less than another; an undefined one follows nothing."""
    return value is not None and than is not None and value >= than - SLACK


def extract_target(
    prepared: Prepared,
    unit: int,
    name: str,
    stored: TargetStage | None = None,
    work: Scored | None = None,
) -> Extracted:
    """Score, sweep, choose and judge the circuit of target ``unit``, as `extract_circuit` does.

    Every level is run on every extraction image, in float32.  ``stored``: the first stage's curve,
    swept before with the same scores: its level is chosen anew and nothing of it is run.
    """
    began, unpruned = time.perf_counter(), unpruned_values(prepared.extraction, unit)
    about = _about(prepared, unit, name, unpruned)
    if np.ptp(unpruned) == 0:
        cost = cost_of(prepared, began, 0, 0, 0)
        record = Target(**about, stages=[], circuit=None, cost=cost, undefined=CONSTANT)
        return Extracted(record, {}, None)
    work = work or scored(prepared, unit)
    tally, before = work.tally, work.tally.multiply_adds
    kept: dict[str, Tensor] = {}
    executors = stage_executors(prepared, unit, work, kept)
    stages = swept_stages(prepared, executors, unpruned, kept, stored)
    kept = {layer: kept[layer] for layer in prepared.runner.network.layers()}
    swept = tally.multiply_adds
    with span("stage", "held-out"):
        activation = activations(prepared.runner, prepared.heldout, unit, kept, tally)
    value = stages[-1].levels[stages[-1].chosen].value
    found = agreement_on(prepared, unit, value, activation)
    cost = cost_of(prepared, began, swept - before, 0, tally.multiply_adds - swept)
    with span("stage", "random masks"):
        floor, cost = _floor(prepared, unit, kept, unpruned, value, cost)
    circuit = _circuit(stages, kept, found)
    record = Target(**about, stages=stages, circuit=circuit, cost=cost, random_masks=floor)
    return Extracted(record, kept, activation)


def _about(prepared: Prepared, unit: int, name: str, unpruned: np.ndarray) -> dict[str, Any]:
    aim, pool = prepared.inputs.aim, prepared.inputs.pool
    assert aim is not None and pool is not None
    return {
        "category": name,
        "index": unit,
        "judge": prepared.options.judge,
        "pool": aim.pool,
        "scoring_images": pool.names(unit, prepared.runner.machine.device),
        "spread": float(unpruned.std()),
    }


def unpruned_values(split: Split, unit: int) -> np.ndarray:
    """The unpruned network's values of a target on a split: float64 [N]."""
    return split.logits[:, unit].double().numpy()


@torch.inference_mode()
def swept_stages(
    prepared: Prepared,
    executors: Iterable[Executor],
    unpruned: np.ndarray,
    kept: dict[str, Tensor],
    stored: TargetStage | None = None,
) -> list[TargetStage]:
    """Sweep stage after stage; each one's masks are added to ``kept``, which the next builds on."""
    stages: list[TargetStage] = []
    for runs in executors:
        again = stored if not stages else None
        stages.append(stage := _stage(prepared, runs, unpruned, stages, again))
        kept |= runs.assigned.kept(stage.levels[stage.chosen].level)
    return stages


def sweeps(prepared: Prepared, unit: int) -> Callable[[Executor], int]:
    """Sweeps one stage of a target after another; each time the level chosen."""
    unpruned, stages = unpruned_values(prepared.extraction, unit), list[TargetStage]()

    def sweep(runs: Executor) -> int:
        stages.append(stage := _stage(prepared, runs, unpruned, stages))
        return stage.levels[stage.chosen].level

    return sweep


def _stage(
    prepared: Prepared,
    runs: Executor,
    unpruned: np.ndarray,
    before: Sequence[TargetStage],
    stored: TargetStage | None = None,
) -> TargetStage:
    """The next stage after those ``before``, which the unpruned network precedes."""
    if stored is not None:
        return _rechosen(prepared, stored)
    start = before[-1].levels[before[-1].chosen].value if before else 1.0
    return _sweep(prepared, runs, unpruned, start)


def _sweep(
    prepared: Prepared, runs: Executor, unpruned: np.ndarray, start: float | None
) -> TargetStage:
    """The curve of one stage and the level its stop rule chooses; ``start``: level 0's value."""
    options, assigned, images = prepared.options, runs.assigned, len(unpruned)
    levels, before = range(1, len(assigned.pruned)), runs.tally.multiply_adds
    with span("stage", assigned.stage):
        planned = runs.planned(levels, images)
        found = runs.look(levels, np.arange(images), True).numpy()
        values = agreement(options.judge, found, unpruned)
    curve = [start, *(float(value) if np.isfinite(value) else None for value in values)]
    threshold = options.stage_threshold(assigned.stage)
    return TargetStage(
        stage=assigned.stage,
        relevant_weights=assigned.relevant,
        tied_zero=assigned.tied_zero,
        threshold=threshold,
        chosen=chosen_level(curve, threshold, options.stop),
        levels=[
            TargetLevel(
                level=t,
                pruned=assigned.fraction(t),
                kept_weights=assigned.relevant - assigned.pruned[t],
                images=images,
                value=value,
            )
            for t, value in enumerate(curve)
        ],
        planned_multiply_adds=planned,
        multiply_adds=runs.tally.multiply_adds - before,
    )


def chosen_level(curve: Sequence[float | None], threshold: float, stop: str) -> int:
    """Position of the chosen level of a curve; one that is undefined is below any threshold."""
    values = [-np.inf if value is None else value for value in curve]
    return choose_level(values, threshold, stop)


def _rechosen(prepared: Prepared, stored: TargetStage) -> TargetStage:
    """A stage from its stored curve: choose again."""
    options = prepared.options
    threshold = options.stage_threshold(stored.stage)
    chosen = chosen_level([level.value for level in stored.levels], threshold, options.stop)
    update = {"threshold": threshold, "chosen": chosen, "multiply_adds": 0}
    return stored.model_copy(update=update)


def agreement_on(
    prepared: Prepared, unit: int, extraction: float | None, activation: Tensor
) -> Agreement:
    """Agreement on both sets; ``activation`` float32 [N]: of the held-out one."""
    seed, judge = unit_seed(prepared.options.seed, unit), prepared.options.judge
    values, unpruned = activation.double().numpy(), unpruned_values(prepared.heldout, unit)
    return Agreement(
        extraction=extraction,
        heldout=value_of(judge, values, unpruned),
        heldout_ci95=interval(judge, values, unpruned, seed),
    )


def judged_masks(
    prepared: Prepared, unit: int, kept: Kept, tally: Tally | None = None
) -> Agreement:
    """The agreement of any circuit of a target, run on both sets."""
    unpruned = unpruned_values(prepared.extraction, unit)
    inside = activations(prepared.runner, prepared.extraction, unit, kept, tally)
    value = value_of(prepared.options.judge, inside.double().numpy(), unpruned)
    outside = activations(prepared.runner, prepared.heldout, unit, kept, tally)
    return agreement_on(prepared, unit, value, outside)


def _floor(
    prepared: Prepared,
    unit: int,
    kept: Kept,
    unpruned: np.ndarray,
    value: float | None,
    cost: Cost,
) -> tuple[TargetMasks | None, Cost]:
    """Random masks of the circuit's own densities, and the cost with theirs beside it."""
    began, tally, judge = time.perf_counter(), Tally(), prepared.options.judge
    found: list[tuple[float, Kept]] = []
    for draw in range(prepared.options.random_masks):
        mask = random_mask(prepared, unit, kept, draw)
        own = activations(prepared.runner, prepared.extraction, unit, mask, tally)
        follows = value_of(judge, own.double().numpy(), unpruned)
        found.append((-np.inf if follows is None else follows, mask))
    if not found:
        return None, cost
    best, drawn_best = max(found, key=lambda each: each[0])
    own = activations(prepared.runner, prepared.heldout, unit, drawn_best, tally)
    beside = agreement_on(prepared, unit, best if np.isfinite(best) else None, own)
    masks = TargetMasks(
        **beside.model_dump(),
        masks=len(found),
        as_good=sum(as_good(each, value) for each, _ in found),
    )
    spent = {
        "fpe_floor": tally.multiply_adds / once(prepared),
        "floor_seconds": time.perf_counter() - began,
    }
    return masks, cost.model_copy(update=spent)


def _circuit(
    stages: Sequence[TargetStage], kept: Mapping[str, Tensor], found: Agreement
) -> TargetCircuit:
    relevant = sum(mask.numel() for mask in kept.values())
    chosen = {stage.stage: stage.levels[stage.chosen] for stage in stages}
    weights = sum(level.kept_weights for level in chosen.values())
    return TargetCircuit(
        **found.model_dump(),
        pruned=1 - weights / relevant,
        pruned_by_stage={stage: level.pruned for stage, level in chosen.items()},
        kept_weights=weights,
        file="",
    )
