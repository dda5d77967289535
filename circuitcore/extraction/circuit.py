"""Extract one category's circuit: stage after stage, one bias, judged on held-out images.

By default the stages are those of Andrade & Konkle (2025), Circuit extraction: prune the fully
connected layers until circuit substitution accuracy falls below the threshold, then the
convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.executors import Executor
from circuitcore.engine.passes import Kept, circuit_pass
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import Judge, choose_level, worth
from circuitcore.extraction.floor import random_masks
from circuitcore.extraction.judging import (
    Reference,
    decisions,
    empty_activation,
    empty_circuit,
    faithfulness,
    heldout_accuracy,
    judges,
    reference_of,
    unpruned_baseline,
)
from circuitcore.extraction.looks import as_in_float32
from circuitcore.extraction.stage import (
    Scored,
    Swept,
    held_against,
    scored,
    stage_executors,
    sweep_stage,
)
from circuitcore.kernels.spans import span
from circuitcore.machine.arrivals import unwaited
from circuitcore.network.forward import Tally
from circuitcore.network.graph import Network
from circuitcore.options import DEFAULT_STAGES, Options
from circuitcore.records import (
    Accuracy,
    Category,
    Circuit,
    Cost,
    Empty,
    Faithfulness,
    Found,
    HeldOut,
    RandomMasks,
    Stage,
    Unpruned,
)
from circuitcore.runs.images.decisions import Decision
from circuitcore.scoring.seeds import unit_seed


@dataclass(frozen=True)
class Extracted:
    """A category's record and its kept-weight masks, bool by layer (none where undefined).

    ``heldout``: the circuit's activation on the held-out set, float32 [N]; in the sweep's precision
    where that is lower and the prediction the same; ``decided``: what it says of single images.
    """

    record: Found
    kept: dict[str, Tensor]
    heldout: Tensor | None
    decided: list[Decision] | None = None

    def measured(self, memory_bytes: int) -> Extracted:
        """The same with the memory it took on its record."""
        cost = self.record.cost.model_copy(update={"memory_bytes": memory_bytes})
        return replace(self, record=self.record.model_copy(update={"cost": cost}))


def extract_circuit(
    prepared: Prepared,
    unit: int,
    name: str,
    stored: Stage | None = None,
    work: Scored | None = None,
) -> Extracted:
    """The circuit of output unit ``unit``, scored, swept, chosen, judged: see `swept_circuit`."""
    return swept_circuit(prepared, unit, name, stored, work)()


def swept_circuit(
    prepared: Prepared,
    unit: int,
    name: str,
    stored: Stage | None = None,
    work: Scored | None = None,
) -> Callable[[], Extracted]:
    """Score, sweep and choose the circuit of output unit ``unit``, and run it on held-out images.

    What is returned tests it there: accuracy and bootstrap intervals, the host's work alone, which
    nothing that follows waits for.  ``stored``: the first stage's curve, swept before with the
    same scores; its level is chosen anew and only run once.  ``work``: the category scored before
    (`scored`), as several readings of the method share it; each then costs what the others before
    it did not run.
    Raises InputError where a layer's scores are not finite.
    """
    began = time.perf_counter()
    options = prepared.options
    with span("stage", "judging"):
        judge, heldout_judge = judges(prepared, unit)
        unpruned = unpruned_baseline(judge, heldout_judge, options.bias)
        empty = empty_circuit(prepared, unit, judge, heldout_judge)
    reference = reference_of(unpruned, empty.extraction, options)
    about = {"category": name, "index": unit, "unpruned": unpruned, "empty": empty}
    if reference.why is not None:
        cost = cost_of(prepared, began, 0, 0, 0)
        record = Category(**about, stages=[], circuit=None, cost=cost, undefined=reference.why)
        return lambda: Extracted(record, {}, None)
    work = work or scored(prepared, unit)
    tally, before = work.tally, work.tally.multiply_adds
    kept: dict[str, Tensor] = {}
    stages = stage_executors(prepared, unit, work, kept)
    swept = _swept(prepared, stages, kept, judge, reference, stored)
    kept = {layer: kept[layer] for layer in prepared.runner.network.layers()}
    fitted = swept[-1].chosen.alone()
    swept_at = tally.multiply_adds
    whole = early_whole(prepared.runner.network, swept)
    with span("stage", "held-out"):
        activation = heldout_activation(
            prepared, unit, kept, heldout_judge, fitted.bias, tally, whole
        )
    certifying = sum(each.certifying for each in swept)
    sweeping, testing = swept_at - before - certifying, tally.multiply_adds - swept_at
    cost = cost_of(prepared, began, sweeping, certifying, testing)
    floor, cost = _floor(prepared, unit, kept, judge, fitted, cost, whole)
    found = {**about, "random_masks": floor}
    return partial(_finished, prepared, found, swept, kept, heldout_judge, activation, cost)


def _finished(
    prepared: Prepared,
    found: dict[str, Any],
    swept: list[Swept],
    kept: dict[str, Tensor],
    judge: Judge,
    activation: Tensor,
    cost: Cost,
) -> Extracted:
    """Test a circuit by its ``activation`` on the held-out set, which ``judge`` is of.

    ``found``: the fields of its record that are known.
    """
    began, fitted = time.perf_counter(), swept[-1].chosen.alone()
    unit, unpruned, empty = found["index"], found["unpruned"], found["empty"]
    with span("stage", "test"):
        heldout, faithful = _tested(prepared, unit, judge, activation, fitted, unpruned, empty)
    seconds = cost.seconds + time.perf_counter() - began
    record = Category(
        **found,
        stages=[each.record for each in swept],
        circuit=_circuit(prepared.runner.network, kept, swept, fitted, heldout),
        cost=cost.model_copy(update={"seconds": seconds}),
        faithfulness=faithful,
    )
    decided = decisions(judge, activation, fitted.bias, unpruned.heldout_biased.bias)
    return Extracted(record, kept, activation, decided)


def heldout_activation(
    prepared: Prepared, unit: int, kept: Kept, judge: Judge, bias: float, tally: Tally,
    whole: bool | None = None,
) -> Tensor:  # fmt: skip
    """A circuit's activation on the held-out set, float32 [N], every prediction that of float32.

    In the sweep's precision; images whose prediction at ``bias`` lies within its error are run
    again in float32.  ``whole``: as `circuit_pass` has it.  Cost: one pass, and those.
    """
    runner, split = prepared.runner, prepared.heldout

    @cache
    def run(precise: bool) -> Callable[[np.ndarray], Tensor]:
        return circuit_pass(runner, split, unit, kept, tally, precise, whole)

    @unwaited
    def look(levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        return run(precise)(images)[None]

    found = as_in_float32(
        look, judge, bias, low=runner.machine.low, once=runner.machine.device.type != "cpu"
    )
    return torch.from_numpy(found).float()


def early_whole(network: Network, swept: Iterable[Swept]) -> bool | None:
    """Whether no layer before the boundary is pruned, as the chosen levels say.

    None where they do not: a stage is pruned that has layers on either side.
    """
    behind = network.after_boundary()
    pruned = [
        {name not in behind for name in network.stages[each.record.stage]}
        for each in swept
        if each.chosen.kept_weights < each.record.relevant_weights
    ]
    if not any(True in early for early in pruned):
        return True
    return False if {True} in pruned else None


def _tested(
    prepared: Prepared,
    unit: int,
    judge: Judge,
    activation: Tensor,
    fitted: Accuracy,
    unpruned: Unpruned,
    empty: Empty,
) -> tuple[HeldOut, Faithfulness]:
    """The circuit's activation on the held-out set, at its frozen bias, and its faithfulness."""
    seed, biased = unit_seed(prepared.options.seed, unit), unpruned.heldout_biased
    heldout = heldout_accuracy(judge, activation, fitted.bias, biased, seed)
    nothing = empty_activation(prepared.inputs.model.network, unit, prepared.heldout)
    said = [
        judge.predicted(activation, fitted.bias),
        judge.predicted(judge.unpruned, biased.bias),
        judge.predicted(nothing, empty.heldout.bias),
    ]
    return heldout, faithfulness(judge, said, fitted, heldout, unpruned, empty, seed)


def _floor(
    prepared: Prepared, unit: int, kept: Kept, judge: Judge, fitted: Accuracy, cost: Cost,
    whole: bool | None,
) -> tuple[RandomMasks | None, Cost]:  # fmt: skip
    """The random masks a circuit is held against, and the cost with theirs beside it."""
    began, tally = time.perf_counter(), Tally()
    with span("stage", "random masks"):
        found = random_masks(prepared, unit, kept, judge, fitted, tally, whole)
    beside = {
        "fpe_floor": tally.multiply_adds / once(prepared),
        "floor_seconds": time.perf_counter() - began,
    }
    return found, cost.model_copy(update=beside)


@torch.inference_mode()
def _swept(
    prepared: Prepared,
    stages: Iterable[Executor],
    kept: dict[str, Tensor],
    judge: Judge,
    reference: Reference,
    stored: Stage | None,
) -> list[Swept]:
    """Sweep stage after stage; each one's masks are added to ``kept``, which the next builds on."""
    swept: list[Swept] = []
    start, error = judge.unpruned, None
    if prepared.runner.machine.low:  # levels of a stored curve were settled at its threshold only
        stored = None
    for runs in stages:
        if not swept and stored is not None:
            result = _rechosen(runs, prepared.options, stored, reference, judge)
        else:
            result = sweep_stage(
                prepared, runs, judge, start=start, reference=reference, start_error=error
            )
        swept.append(result)
        kept |= runs.assigned.kept(result.level)
        start, error = result.activation, result.error
    return swept


def _rechosen(
    runs: Executor, options: Options, stored: Stage, reference: Reference, judge: Judge
) -> Swept:
    """The first stage from its stored curve: choose again, then run the chosen level alone."""
    curve = [worth(level, options.bias) for level in stored.levels]
    if options.reference == "peak":
        reference = reference.peak(curve)
    fraction = options.stage_threshold(stored.stage)
    chosen = choose_level(curve, reference.threshold(fraction), options.stop)
    t = stored.levels[chosen].level
    activation, before = judge.unpruned, runs.tally.multiply_adds
    if t:
        activation = runs.look([t], np.arange(len(judge.unpruned)), True)[0]
    held = held_against(reference, fraction, options.bias)
    record = stored.model_copy(update={**held, "chosen": chosen})
    return Swept(record, t, activation, runs.tally.multiply_adds - before)


def _circuit(
    network: Network,
    kept: Mapping[str, Tensor],
    swept: list[Swept],
    fitted: Accuracy,
    heldout: HeldOut,
) -> Circuit:
    pruned = {each.record.stage: each.chosen.pruned for each in swept}
    default = set(pruned) <= set(DEFAULT_STAGES)
    relevant = sum(mask.numel() for mask in kept.values())
    weights = sum(each.chosen.kept_weights for each in swept)
    return Circuit(
        pruned=1 - weights / relevant,
        pruned_fc=pruned.get("fc", 0.0) if default else None,
        pruned_conv=pruned.get("conv", 0.0) if default else None,
        pruned_by_stage=None if default else pruned,
        skipped=[name for name in network.weighted() if name not in kept],
        kept_weights=weights,
        bias=fitted.bias,
        extraction=fitted,
        heldout=heldout,
        file="",
    )


def once(prepared: Prepared) -> int:
    """Multiply-adds of one forward-pass equivalent."""
    return prepared.runner.sizes.multiply_adds * len(prepared.extraction)


def cost_of(prepared: Prepared, began: float, sweep: int, certify: int, heldout: int) -> Cost:
    """What a category took since ``began``: multiply-adds of the sweep and what follows it."""
    one = once(prepared)
    work = sweep + certify + heldout
    return Cost(
        seconds=time.perf_counter() - began,
        fpe=work / one,
        multiply_adds=work,
        fpe_sweep=sweep / one,
        fpe_certify=certify / one,
        fpe_heldout=heldout / one,
    )
