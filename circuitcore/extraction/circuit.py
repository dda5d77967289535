"""Extract one category's circuit: fc stage, conv stage, one bias, judged on held-out images.

The stages are those of Andrade & Konkle (2025), Circuit extraction: prune the fully connected
layers until circuit substitution accuracy falls below the threshold, then the convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.executors import Executor
from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.accuracy import Judge, choose_level
from circuitcore.extraction.judging import (
    heldout_accuracy,
    judges,
    reference_csa,
    unpruned_baseline,
)
from circuitcore.extraction.stage import Swept, stage_executors, sweep_stage
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.records import Accuracy, Category, Circuit, Cost, HeldOut, Stage
from circuitcore.scoring.scores import contributions
from circuitcore.scoring.seeds import unit_seed


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
    options, tally = prepared.options, Tally()
    judge, heldout_judge = judges(prepared, unit)
    unpruned = unpruned_baseline(judge, heldout_judge, options.bias)
    reference = reference_csa(unpruned, options.reference)

    def record(stages: list[Stage], circuit: Circuit | None) -> Category:
        cost = _cost(prepared, tally, began)
        return Category(category=name, index=unit, unpruned=unpruned, stages=stages,
                        circuit=circuit, cost=cost)  # fmt: skip

    if reference <= 0:
        return Extracted(record([], None), {}, None)
    found = contributions(prepared.runner.network, prepared.scoring_images(unit), unit)
    kept: dict[str, Tensor] = {}
    stages = stage_executors(prepared, unit, found, kept, tally)
    swept = _swept(prepared, stages, kept, judge, reference, stored_fc)
    kept = {layer: kept[layer] for layer in prepared.runner.network.layers()}
    chosen = swept[-1].chosen
    fitted = Accuracy(**{k: getattr(chosen, k) for k in Accuracy.model_fields})
    activation = activations(prepared.runner, prepared.heldout, unit, kept)
    seed = unit_seed(options.seed, unit)
    biased = unpruned.heldout_biased
    heldout = heldout_accuracy(heldout_judge, activation, fitted.bias, biased, seed)
    circuit = _circuit(kept, swept, fitted, heldout)
    return Extracted(record([each.record for each in swept], circuit), kept, activation)


@torch.inference_mode()
def _swept(
    prepared: Prepared,
    stages: Iterable[Executor],
    kept: dict[str, Tensor],
    judge: Judge,
    reference: float,
    stored_fc: Stage | None,
) -> list[Swept]:
    """Sweep stage after stage; each one's masks are added to ``kept``, which the next builds on."""
    swept: list[Swept] = []
    start = judge.unpruned
    for runs in stages:
        if runs.assigned.stage == "fc" and stored_fc is not None:
            result = _rechosen(runs, prepared.options, stored_fc, reference, judge)
        else:
            result = sweep_stage(prepared, runs, judge, start=start, reference=reference)
        swept.append(result)
        kept |= runs.assigned.kept(result.level)
        start = result.activation
    return swept


def _rechosen(
    runs: Executor, options: Options, stored: Stage, reference: float, judge: Judge
) -> Swept:
    """The fc stage from its stored curve: choose again, then run the chosen level alone."""
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
    kept: Mapping[str, Tensor], swept: list[Swept], fitted: Accuracy, heldout: HeldOut
) -> Circuit:
    pruned = {each.record.stage: each.chosen.pruned for each in swept}
    relevant = sum(mask.numel() for mask in kept.values())
    weights = sum(int(mask.count_nonzero()) for mask in kept.values())
    return Circuit(
        pruned=1 - weights / relevant,
        pruned_fc=pruned["fc"],
        pruned_conv=pruned.get("conv", 0.0),
        kept_weights=weights,
        bias=fitted.bias,
        extraction=fitted,
        heldout=heldout,
        file="",
    )


def _cost(prepared: Prepared, tally: Tally, began: float) -> Cost:
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction)
    return Cost(
        seconds=time.perf_counter() - began,
        fpe=tally.multiply_adds / once,
        multiply_adds=tally.multiply_adds,
    )
