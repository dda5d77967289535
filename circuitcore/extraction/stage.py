"""Sweep one stage of one category: plan its levels, run them, choose one by the stop rule.

Level 0 is never run: it is the unpruned network, or the circuit the stage began with.  What every
level costs is known from the level bytes before anything runs; with every level evaluated
(``--screen off``) the plan's multiply-adds are those executed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcore.engine.executors import ChainExecutor, Executor
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import SLACK, Judge, choose_level
from circuitcore.extraction.screening import Judged, Rule, Screening
from circuitcore.machine.spans import span
from circuitcore.records import Level, Stage
from circuitcore.scoring.levels import StageLevels

ERROR_BUDGET = 0.01  # a run's probability that any level was accepted on an unlucky sample


@dataclass(frozen=True)
class Swept:
    """A stage's curve and the target activation float32 [N] at its chosen level."""

    record: Stage
    level: int
    activation: Tensor

    @property
    def chosen(self) -> Level:
        """The curve's chosen level."""
        return self.record.levels[self.record.chosen]


def sweep_stage(
    runs: Executor,
    judge: Judge,
    *,
    start: Tensor,
    reference: float,
    dense: bool,
) -> Swept:
    """The curve of one stage and the level its stop rule chooses, certified in float32.

    ``runs``: the stage's `executor`; ``start`` float32 [N]: the activation at level 0;
    ``reference``: CSA that the threshold is a fraction of; ``dense``: run every level on every
    image, else as few as the rule needs.  Cost: at most one pass over the extraction set a level,
    of the fc layers (fc stage) or the whole network (conv stage).
    """
    prepared, assigned, tally = runs.prepared, runs.assigned, runs.tally
    options = prepared.options
    count, images = len(assigned.pruned), len(prepared.extraction)
    before = tally.multiply_adds
    with span("stage", assigned.stage):
        fraction = options.stage_threshold(assigned.stage)
        screening = Screening(
            judge, start, count, runs.look, _rule(prepared, runs, fraction * reference)
        )
        planned = None
        if dense:
            planned = runs.planned(range(1, count), images)
            screening.judge_all()
            if options.reference == "peak":
                reference = max(each.bounds.expected.csa for each in screening.judged.values())
            curve = [screening.judged[t].bounds.expected.csa for t in range(count)]
            chosen = choose_level(curve, fraction * reference, options.stop)
            if screening.rule.low:
                chosen = screening.certified(chosen, fraction * reference - SLACK)
        else:
            chosen = screening.run()
    ts = sorted(screening.judged)
    levels = [_level(assigned, t, screening.judged[t]) for t in ts]
    record = Stage(
        stage=assigned.stage,  # type: ignore[arg-type]
        relevant_weights=assigned.relevant,
        tied_zero=assigned.tied_zero,
        reference_csa=reference,
        threshold_csa=fraction * reference,
        chosen=ts.index(chosen),
        levels=levels,
        planned_multiply_adds=planned,
        multiply_adds=tally.multiply_adds - before,
        recomputed=sum(each.recomputed for each in screening.judged.values()),
    )
    return Swept(record, chosen, screening.at(chosen))


def _rule(prepared: Prepared, runs: Executor, threshold: float) -> Rule:
    options = prepared.options
    looks = len(prepared.inputs.categories) * sum(len(options.grid(s)) for s in ("fc", "conv"))
    return Rule(
        below=threshold - SLACK,
        stop=options.stop,
        bias=options.bias,
        at_once=isinstance(runs, ChainExecutor),
        low=prepared.dtype != torch.float32,
        risk=ERROR_BUDGET / looks,
        seed=options.seed,
    )


def _level(assigned: StageLevels, t: int, judged: Judged) -> Level:
    found = judged.bounds
    return Level(
        **found.expected.model_dump(),
        level=t,
        pruned=assigned.fraction(t),
        kept_weights=assigned.relevant - assigned.pruned[t],
        images=judged.images,
        csa_lo=found.low.csa,
        csa_hi=found.high.csa,
    )
