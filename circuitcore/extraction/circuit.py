"""Extract one category's circuit: fc stage, conv stage, one bias, judged on held-out images.

The stages are those of Andrade & Konkle (2025), Circuit extraction: prune the fully connected
layers until circuit substitution accuracy falls below the threshold, then the convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.executors import Executor, executor
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import Judge, choose_level, ratio
from circuitcore.extraction.judging import (
    is_dense,
    judges,
    reference_csa,
    unpruned_baseline,
)
from circuitcore.extraction.stage import Swept, sweep_stage
from circuitcore.network.forward import Tally
from circuitcore.network.graph import STAGES
from circuitcore.records import Accuracy, Category, Circuit, Cost, HeldOut, Level, Stage, Unpruned
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions


@dataclass(frozen=True)
class Extracted:
    """A category's record and its kept-weight masks, bool by layer (none where undefined).

    ``heldout``: the circuit's activation on the held-out set, float32 [N].
    """

    record: Category
    kept: dict[str, Tensor]
    heldout: Tensor | None

    def measured(self, memory_bytes: int) -> Extracted:
        """The same with the memory it took on its record."""
        cost = self.record.cost.model_copy(update={"memory_bytes": memory_bytes})
        return replace(self, record=self.record.model_copy(update={"cost": cost}))


def extract_circuit(
    prepared: Prepared, unit: int, name: str, stored_fc: Stage | None = None
) -> Extracted:
    """Score, sweep, choose and judge the circuit of output unit ``unit``.

    ``stored_fc``: an fc curve swept before with the same scores; its level is chosen anew and only
    run once.  Raises InputError where a layer's scores are not finite.
    """
    began = time.perf_counter()
    network, options = prepared.network, prepared.options
    judge, heldout_judge = judges(prepared, unit)
    unpruned = unpruned_baseline(prepared, unit)
    reference = reference_csa(unpruned, options.reference)
    tally = Tally()
    if reference <= 0:
        return Extracted(_record(prepared, unit, name, unpruned, [], None, tally, began), {}, None)

    found = contributions(network, prepared.scoring_images(unit), unit)
    kept: dict[str, Tensor] = {}
    swept: dict[str, Swept] = {}
    start = judge.unpruned
    with torch.inference_mode():
        for stage in STAGES:
            if not network.layers(stage):
                continue
            assigned = stage_levels(network, stage, found, unit, options)
            runs = executor(prepared, unit, assigned, kept, tally)
            if stage == "fc" and stored_fc is not None:
                result = _rechosen(runs, stored_fc, reference, judge)
            else:
                dense = is_dense(prepared)
                result = sweep_stage(runs, judge, start=start, reference=reference, dense=dense)
            swept[stage] = result
            kept |= assigned.kept(result.level)
            start = result.activation
        kept = {name: kept[name] for name in network.layers()}
        last = list(swept.values())[-1]
        fitted = Accuracy(**{k: getattr(last.chosen, k) for k in Accuracy.model_fields})
        heldout = activations(prepared, prepared.heldout, unit, kept)
    circuit = _circuit(options.seed, unit, kept, swept, fitted, heldout, heldout_judge, unpruned)
    stages = [result.record for result in swept.values()]
    record = _record(prepared, unit, name, unpruned, stages, circuit, tally, began)
    return Extracted(record, kept, heldout)


def _rechosen(runs: Executor, stored: Stage, reference: float, judge: Judge) -> Swept:
    """The fc stage from its stored curve: choose again, then run the chosen level alone."""
    options = runs.prepared.options
    curve = [level.csa for level in stored.levels]
    if options.reference == "peak":
        reference = max(curve)
    threshold = options.stage_threshold("fc") * reference
    chosen = choose_level(curve, threshold, options.stop)
    t = stored.levels[chosen].level
    activation = judge.unpruned
    if t:
        activation = runs.look([t], np.arange(len(judge.unpruned)), True)[0]
    record = stored.model_copy(
        update={"reference_csa": reference, "threshold_csa": threshold, "chosen": chosen}
    )
    return Swept(record, t, activation)


def _circuit(
    seed: int,
    unit: int,
    kept: Mapping[str, Tensor],
    swept: Mapping[str, Swept],
    fitted: Accuracy,
    activation: Tensor,
    judge: Judge,
    unpruned: Unpruned,
) -> Circuit:
    heldout = judge.at(activation, fitted.bias)
    chosen: dict[str, Level] = {stage: result.chosen for stage, result in swept.items()}
    relevant = sum(mask.numel() for mask in kept.values())
    weights = sum(int(mask.count_nonzero()) for mask in kept.values())
    return Circuit(
        pruned=1 - weights / relevant,
        pruned_fc=chosen["fc"].pruned,
        pruned_conv=chosen["conv"].pruned if "conv" in chosen else 0.0,
        kept_weights=weights,
        bias=fitted.bias,
        extraction=fitted,
        heldout=HeldOut(
            **heldout.model_dump(),
            csa_ratio=ratio(heldout.csa, unpruned.heldout.csa),
            csa_ratio_ci95=judge.ratio_interval(activation, fitted.bias, seed * 1_000_003 + unit)
            if unpruned.heldout.csa > 0
            else None,
            csa_ratio_biased=ratio(heldout.csa, unpruned.heldout_biased.csa),
        ),
        file="",
    )


def _record(
    prepared: Prepared,
    unit: int,
    name: str,
    unpruned: Unpruned,
    stages: list[Stage],
    circuit: Circuit | None,
    tally: Tally,
    began: float,
) -> Category:
    once = prepared.forward_multiply_adds * len(prepared.extraction)
    return Category(
        category=name,
        index=unit,
        unpruned=unpruned,
        stages=stages,
        circuit=circuit,
        cost=Cost(
            seconds=time.perf_counter() - began,
            fpe=tally.multiply_adds / once,
            multiply_adds=tally.multiply_adds,
        ),
    )
