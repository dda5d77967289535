"""Many readings of the method at once: what only chooses anew shares one sweep.

Threshold, reference, stop rule, bias and the false alarms' norm say which level of a curve is
chosen, not what any level gives.  So readings of the same scores and levels share every pass: a
level is run once, in float32, whoever asks for it; stages that follow the same circuit are one; a
circuit that several readings arrive at is tested once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.executors import ChainExecutor, Executor
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import SLACK, Judge, worth
from circuitcore.extraction.floor import random_masks
from circuitcore.extraction.judging import (
    Reference,
    empty_circuit,
    every_level,
    judges,
    reference_of,
    unpruned_baseline,
)
from circuitcore.extraction.stage import Scored, stage_executor, sweep_stage
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.records import Accuracy, Empty, Record, Unpruned

Levels = tuple[int, ...]  # the level chosen in each stage, as far as they are chosen


class Read(Record):
    """One category's circuit by one reading, on the held-out set but for ``extraction``.

    ``levels``: the level chosen in each stage; ``pruned`` of all relevant weights; ``unpruned`` at
    bias 0, ``unpruned_biased`` at its own; ``as_good``: random masks of the same densities that do
    as well on the extraction set; ``peak``: under bias ``none`` the largest CSA of the first
    stage's curve over the unpruned network's, and the fraction of all relevant weights kept there;
    ``multiply_adds``: what the reading would have cost alone, None where levels were screened, on
    images that readings share.  No circuit: ``undefined`` says why.
    """

    unpruned: Accuracy
    unpruned_biased: Accuracy
    empty: Accuracy
    undefined: str | None = None
    levels: tuple[int, ...] = ()
    pruned: float | None = None
    extraction: Accuracy | None = None
    heldout: Accuracy | None = None
    as_good: int | None = None
    peak: tuple[float, float] | None = None
    multiply_adds: int | None = 0


@dataclass
class _Reading:
    """A reading on its way through the stages."""

    options: Options
    judge: Judge
    heldout: Judge
    unpruned: Unpruned
    empty: Empty
    reference: Reference
    fitted: Accuracy
    peak: tuple[float, float] | None = None
    multiply_adds: int | None = 0

    def read(self, **found: object) -> Read:
        """The record of it."""
        return Read.model_validate(
            {
                "unpruned": self.unpruned.heldout,
                "unpruned_biased": self.unpruned.heldout_biased,
                "empty": self.empty.heldout,
                "undefined": self.reference.why,
                "peak": self.peak,
                "multiply_adds": self.multiply_adds,
                **found,
            }
        )


@dataclass(frozen=True)
class Family:
    """What readings of the same scores and levels found in one category.

    ``kept``: by stage and level the masks of the chosen circuits, bool by layer; ``floor``:
    multiply-adds of the random masks, which the scored work's own tally does not have.
    """

    readings: list[Read]
    kept: dict[tuple[str, int], dict[str, Tensor]]
    floor: int


@dataclass
class _Curve:
    """One stage behind one circuit: activations and accuracies of its levels, each made once."""

    runs: Executor
    values: dict[int, Tensor]
    fits: dict[tuple[str, str, int], Accuracy] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Levels, the unpruned one among them."""
        return len(self.runs.assigned.pruned)

    @property
    def together(self) -> bool:
        """Whether all levels are one pass."""
        return isinstance(self.runs, ChainExecutor)

    def activation(self, t: int) -> Tensor:
        """Target activation float32 [N] at level ``t``."""
        if t not in self.values:
            ts = list(range(1, self.count)) if self.together else [t]
            rows = self.runs.look(ts, np.arange(len(self.values[0])), True)
            self.values |= dict(zip(ts, rows, strict=True))
        return self.values[t]

    def accuracy(self, t: int, reading: _Reading) -> Accuracy:
        """With the reading's own kind of bias, fitted at that level."""
        bias, norm = reading.options.bias, reading.options.false_alarm_norm
        if (bias, norm, t) not in self.fits:
            found = reading.judge.fitted(self.activation(t)[None], bias)[0]
            self.fits[bias, norm, t] = found
        return self.fits[bias, norm, t]

    def cost(self, seen: Sequence[int]) -> int:
        """Multiply-adds of these levels alone."""
        ts = list(range(1, self.count)) if self.together else [t for t in seen if t]
        return self.runs.planned(ts, len(self.values[0])) if ts and any(seen) else 0


@torch.inference_mode()
def read_family(prepared: Prepared, unit: int, readings: Sequence[Options], work: Scored) -> Family:
    """The circuits of output unit ``unit`` by all ``readings``, which share scores and levels.

    ``work``: the category scored, with executors to share.  Equals a sweep of each reading in
    float32.  Cost: the first stage's levels once, a later stage's as far as any reading looks and
    once for each circuit it follows, one pass over the held-out set a circuit; of many images, as
    a sweep screens them, those that any reading asks for at a level, once.
    """
    found = [_begun(prepared, unit, options) for options in readings]
    relevant = prepared.runner.network.relevant()
    groups: dict[Levels, list[_Reading]] = {(): [r for r in found if r.reference.why is None]}
    start: dict[Levels, Tensor] = {(): judges(prepared, unit)[0].unpruned}
    fixed: dict[Levels, dict[str, Tensor]] = {(): {}}
    pruned: dict[Levels, int] = {(): 0}
    kept: dict[tuple[str, int], dict[str, Tensor]] = {}
    for stage in prepared.runner.network.stages:
        chosen: dict[Levels, list[_Reading]] = defaultdict(list)
        for levels, group in groups.items():
            if not group:
                continue
            runs = stage_executor(prepared, unit, work, stage, fixed[levels])
            curve = _Curve(runs, {0: start[levels]})
            for reading in group:
                t = _choose(prepared, curve, reading, stage)
                if not levels and reading.options.bias == "none":
                    reading.peak = _peak(curve, reading, relevant)
                now = (*levels, t)
                if now not in start:
                    masks = runs.assigned.kept(t)
                    kept.setdefault((stage, t), masks)
                    start[now], fixed[now] = curve.activation(t), {**fixed[levels], **masks}
                    pruned[now] = pruned[levels] + runs.assigned.pruned[t]
                chosen[now].append(reading)
        groups = chosen
    read, floor = {}, Tally()
    for levels, group in groups.items():
        for reading, record in _tested(prepared, unit, group, fixed[levels], work, floor):
            share = {"levels": levels, "pruned": pruned[levels] / relevant}
            read[id(reading)] = record.model_copy(update=share)
    return Family([read.get(id(r)) or r.read() for r in found], kept, floor.multiply_adds)


def _begun(prepared: Prepared, unit: int, options: Options) -> _Reading:
    """What a reading judges by, and the unpruned network as it sees it."""
    own = replace(prepared, options=options)
    judge, heldout = judges(own, unit)
    unpruned = unpruned_baseline(judge, heldout, options.bias)
    empty = empty_circuit(own, unit, judge, heldout)
    reference = reference_of(unpruned, empty.extraction, options)
    fitted = unpruned.extraction_biased
    return _Reading(options, judge, heldout, unpruned, empty, reference, fitted)


def _choose(prepared: Prepared, curve: _Curve, reading: _Reading, stage: str) -> int:
    """The level of a stage by the stop rule, looking no further than that needs."""
    options, reference, seen = reading.options, reading.reference, set()
    if not every_level(options, len(curve.values[0])):
        own = replace(prepared, options=options)
        start = curve.values[0]
        swept = sweep_stage(own, curve.runs, reading.judge, start=start, reference=reference)
        reading.fitted, reading.multiply_adds = swept.chosen.alone(), None
        curve.values[swept.level] = swept.activation
        return swept.level

    def value(t: int) -> float:
        seen.add(t)
        return worth(curve.accuracy(t, reading), options.bias)

    every = range(curve.count)
    if options.reference == "peak":
        reference = reference.peak([value(t) for t in every])
    below = reference.threshold(options.stage_threshold(stage)) - SLACK
    if options.stop == "first-crossing":
        first = next((t for t in every if value(t) < below), curve.count)
        chosen = max(first - 1, 0)
    else:
        chosen = next((t for t in reversed(every[1:]) if value(t) >= below), 0)
    reading.fitted = curve.accuracy(chosen, reading)
    if reading.multiply_adds is not None:
        reading.multiply_adds += curve.cost(sorted(seen))
    return chosen


def _peak(curve: _Curve, reading: _Reading, relevant: int) -> tuple[float, float] | None:
    """Largest CSA over the unpruned network's, and the kept fraction of all weights there."""
    csas = [curve.accuracy(t, reading).csa for t in range(curve.count)]
    at = int(np.argmax(csas))
    if csas[0] <= 0:
        return None
    return csas[at] / csas[0], 1 - curve.runs.assigned.pruned[at] / relevant


def _tested(
    prepared: Prepared, unit: int, group: Sequence[_Reading], masks: dict[str, Tensor],
    work: Scored, floor: Tally,
) -> list[tuple[_Reading, Read]]:  # fmt: skip
    """Readings that arrived at one circuit: its activation on the held-out set, judged by each."""
    kept = {layer: masks[layer] for layer in prepared.runner.network.layers()}
    before = work.tally.multiply_adds
    activation = activations(prepared.runner, prepared.heldout, unit, kept, work.tally)
    testing = work.tally.multiply_adds - before
    as_good: dict[tuple[str, str], int | None] = {}
    found = []
    for reading in group:
        options = reading.options
        # a matched bias is judged by its hits, whatever the norm
        norm = "" if options.bias == "matched" else options.false_alarm_norm
        if (options.bias, norm) not in as_good:
            own = replace(prepared, options=options)
            drawn = random_masks(own, unit, kept, reading.judge, reading.fitted, floor)
            as_good[options.bias, norm] = None if drawn is None else drawn.as_good
        alone = reading.multiply_adds
        record = reading.read(
            extraction=reading.fitted.alone(),
            heldout=reading.heldout.at(activation, reading.fitted.bias),
            as_good=as_good[options.bias, norm],
            multiply_adds=None if alone is None else alone + testing,
        )
        found.append((reading, record))
    return found
