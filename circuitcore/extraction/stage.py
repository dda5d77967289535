"""Sweep one stage of one category: plan its levels, run them, choose one by the stop rule.

Level 0 is never run: it is the unpruned network, or the circuit the stage began with.  What every
level costs is known from the level bytes before anything runs; with every level evaluated
(``--screen off``) the plan's multiply-adds are those executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.executors import ChainExecutor, Executor, executor
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import SLACK, Judge, choose_level, worth
from circuitcore.extraction.judging import Reference, every_level
from circuitcore.extraction.screening import Judged, Rule, Screening
from circuitcore.kernels.spans import span
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.records import Level, Stage
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.levels import StageLevels, stage_levels
from circuitcore.scoring.scores import Contribution

ERROR_BUDGET = 0.01  # a run's probability that any level was accepted on an unlucky sample


@dataclass(frozen=True)
class Swept:
    """A stage's curve and the target activation float32 [N] at its chosen level.

    ``error``: how far off that may be, float64 [N]; None where all of it is float32.
    ``certifying``: multiply-adds, of the record's, that certified the level.
    """

    record: Stage
    level: int
    activation: Tensor
    certifying: int = 0
    error: np.ndarray | None = None

    @property
    def chosen(self) -> Level:
        """The curve's chosen level."""
        return self.record.levels[self.record.chosen]


@dataclass(frozen=True)
class Scored:
    """One category's scores (none where all stages are ranked), multiply-adds spent on it so far.

    ``made``: executors by what they depend on, where several readings of the method are to share
    them; None where each is used once.  ``assigned``: levels of stages ranked already.
    """

    found: Mapping[str, Contribution]
    tally: Tally
    made: dict[tuple[Any, ...], Executor] | None = None
    assigned: Mapping[str, StageLevels] = field(default_factory=dict)


def scored(prepared: Prepared, unit: int, *, share: bool = False) -> Scored:
    """Score one category.  ``share``: for several readings that differ in how levels are judged."""
    with prepared.runner.products(precise=True), span("stage", "scoring"):
        images, options = prepared.scoring_images(unit), prepared.options
        found = scored_by(prepared.runner.network, images, unit, options)
    return Scored(found, Tally(), {} if share else None)


def ranked(prepared: Prepared, unit: int) -> Scored:
    """Score one category and rank all its stages: none depends on what another one leaves.

    On a GPU by one captured graph where that does; the factors of the scores are not kept then.
    """
    network, ranking = prepared.runner.network, prepared.ranking
    if ranking is not None:
        with prepared.runner.products(precise=True), span("stage", "scoring and levels"):
            found = ranking.ranked(prepared.scoring_images(unit), unit)
        if found is not None:
            return Scored({}, Tally(), assigned=found)
    work = scored(prepared, unit)
    with span("stage", "levels"):
        assigned = {
            stage: stage_levels(network, stage, work.found, unit, prepared.options)
            for stage in network.stages
        }
    return replace(work, assigned=assigned)


def stage_executors(
    prepared: Prepared, unit: int, work: Scored, kept: Mapping[str, Tensor]
) -> Iterator[Executor]:
    """What runs each stage of one category, in order: made when the stage before it is done.

    ``kept``: masks of the stages done; the caller adds each stage's own.
    """
    for stage in prepared.runner.network.stages:
        yield stage_executor(prepared, unit, work, stage, dict(kept))


def stage_executor(
    prepared: Prepared, unit: int, work: Scored, stage: str, fixed: Mapping[str, Tensor]
) -> Executor:
    """What runs one stage behind the masks ``fixed``; made before where readings share it."""
    network, options = prepared.runner.network, prepared.options
    key: tuple[Any, ...] = ()
    if work.made is not None:
        # masks of the same scores are nested: how many weights each layer keeps tells which
        key = stage, options.grid(stage), *(int(m.count_nonzero()) for m in fixed.values())
        if key in work.made:
            return work.made[key]
    assigned = work.assigned.get(stage)
    with span("stage", "levels"):  # and what of them the executor surveys once
        assigned = assigned or stage_levels(network, stage, work.found, unit, options)
        runs = executor(prepared.runner, prepared.extraction, unit, assigned, fixed, work.tally)
    if work.made is not None:
        work.made[key] = remembering(runs, len(prepared.extraction))
    return runs


def remembering(runs: Executor, images: int) -> Executor:
    """The same executor, whose float32 looks are kept: no image is run twice at a level.

    Cost: four bytes an image and level.
    """
    look, known = runs.look, np.full((len(runs.assigned.pruned), images), np.nan, np.float32)

    def remembered(levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        if not runs.exact(precise):
            return look(levels, images, precise)
        asked = np.asarray(levels, np.int64)
        block = np.ix_(asked, images)
        new = np.isnan(known[block])
        rows, columns = asked[new.any(1)], images[new.any(0)]
        if len(rows):
            known[np.ix_(rows, columns)] = look(rows.tolist(), columns, precise).numpy()
        return torch.from_numpy(known[block])

    runs.look = remembered  # type: ignore[method-assign]
    return runs


def sweep_stage(
    prepared: Prepared,
    runs: Executor,
    judge: Judge,
    *,
    start: Tensor,
    reference: Reference,
    start_error: np.ndarray | None = None,
) -> Swept:
    """The curve of one stage and the level its stop rule chooses, certified in float32.

    ``runs``: the stage's `executor`; ``start`` float32 [N]: the activation at level 0,
    off by ``start_error`` at most; ``reference``: what the threshold is a fraction of.  Cost: at
    most one pass over the extraction set a level, from the boundary on or of the whole network.
    """
    options, assigned, tally = prepared.options, runs.assigned, runs.tally
    images, before = len(prepared.extraction), tally.multiply_adds
    fraction = options.stage_threshold(assigned.stage)
    planned = None
    with span("stage", assigned.stage):
        rule = _rule(prepared, runs, reference.threshold(fraction))
        count = len(assigned.pruned)
        screening = Screening(
            judge, start, count, runs.look, rule, lambda: tally.multiply_adds, start_error
        )
        if every_level(options, images):
            planned = runs.planned(range(1, count), images)
            reference, chosen = _every_level(screening, options, fraction, reference)
        else:
            chosen = screening.run()
    ts = sorted(screening.judged)
    record = Stage(
        stage=assigned.stage,
        relevant_weights=assigned.relevant,
        tied_zero=assigned.tied_zero,
        **held_against(reference, fraction, options.bias),
        chosen=ts.index(chosen),
        levels=[_level(assigned, t, screening.judged[t], judge) for t in ts],
        planned_multiply_adds=planned,
        multiply_adds=tally.multiply_adds - before,
        recomputed=sum(each.recomputed for each in screening.judged.values()),
    )
    error = screening.error(chosen) if rule.low else None
    return Swept(record, chosen, screening.at(chosen), screening.certifying, error)


def held_against(reference: Reference, fraction: float, bias: str) -> dict[str, float | None]:
    """The fields of a `Stage` that say what its levels were held against."""
    hits = bias == "matched"
    return {
        "reference_csa": reference.csa if hits else reference.full,
        "threshold_csa": fraction * reference.csa if hits else reference.threshold(fraction),
        "reference_hits": reference.full if hits else None,
        "threshold_hits": reference.threshold(fraction) if hits else None,
    }


def _every_level(
    screening: Screening, options: Options, fraction: float, reference: Reference
) -> tuple[Reference, int]:
    """Judge every level on every image: the reference (the peak is known only now), the level."""
    screening.judge_all(settled=options.reference == "peak")
    found = [screening.judged[t].bounds.expected for t in range(screening.count)]
    curve = [worth(each, options.bias) for each in found]
    if options.reference == "peak":
        reference = reference.peak(curve)
    threshold = reference.threshold(fraction)
    chosen = choose_level(curve, threshold, options.stop)
    if screening.rule.low:
        chosen = screening.certified(chosen, threshold - SLACK)
    return reference, chosen


def _rule(prepared: Prepared, runs: Executor, threshold: float) -> Rule:
    options = prepared.options
    grids = sum(len(options.grid(stage)) for stage in prepared.runner.network.stages)
    looks = len(prepared.inputs.categories) * grids
    return Rule(
        below=threshold - SLACK,
        stop=options.stop,
        bias=options.bias,
        at_once=isinstance(runs, ChainExecutor),
        # a trained bias has no bounds that rounding could be held to
        low=prepared.runner.machine.low and options.bias != "sgd",
        once=prepared.runner.machine.device.type != "cpu",
        risk=ERROR_BUDGET / looks,
        seed=options.seed,
    )


def _level(assigned: StageLevels, t: int, judged: Judged, judge: Judge) -> Level:
    found = judged.bounds
    low, high = found.csa_interval(judge)
    return Level(
        **found.expected.model_dump(),
        level=t,
        pruned=assigned.fraction(t),
        kept_weights=assigned.relevant - assigned.pruned[t],
        images=judged.images,
        csa_lo=low,
        csa_hi=high,
        hit_lo=found.low.hit,
        hit_hi=found.high.hit,
    )
