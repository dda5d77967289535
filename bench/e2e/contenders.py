"""What a sweep is raced against: the same levels and the same rules, run plainly.

Scores, level bytes, the exact bias and the stop rule are circuitcore's own in every contender;
they differ in how they come by the target activation of every image at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.engine.prepare import Prepared
from circuitcore.engine.splits import Split
from circuitcore.extraction.accuracy import Judge, choose_level, worth
from circuitcore.extraction.judging import Reference, empty_circuit, judges, unpruned_baseline
from circuitcore.extraction.judging import reference_of as reference_in
from circuitcore.network.graph import STAGES
from circuitcore.network.layers.table import apply_step
from circuitcore.records import Stage
from circuitcore.scoring.levels import StageLevels, stage_levels
from circuitcore.scoring.scores import contributions

BATCH = 64  # images

Run = Callable[[int], Tensor]  # level -> target activations float32 [N]


@dataclass(frozen=True)
class Curve:
    """One stage swept: CSA and kept weights by level, the level chosen, activations [N] there."""

    csa: dict[int, float]
    kept_weights: dict[int, int]
    level: int
    activation: Tensor | None = None

    @classmethod
    def of(cls, stage: Stage) -> Curve:
        """The curve of circuitcore's own record; levels it did not judge wholly are left out."""
        whole = [v for v in stage.levels if v.csa_lo == v.csa_hi]
        return cls(
            {v.level: v.csa for v in whole},
            {v.level: v.kept_weights for v in stage.levels},
            stage.levels[stage.chosen].level,
        )


def assert_same(found: Curve, want: Curve, every_level: bool) -> None:
    """The same circuit, and the same CSA wherever ``found`` judged a level on every image."""
    assert found.level == want.level
    assert found.kept_weights[found.level] == want.kept_weights[want.level]
    if every_level:
        assert found.csa.keys() == want.csa.keys()
    for t, value in found.csa.items():
        assert abs(value - want.csa[t]) < 1e-9, f"level {t}: CSA {value}, should be {want.csa[t]}"
        assert found.kept_weights[t] == want.kept_weights[t]


@torch.inference_mode()
def masked_forward(
    prepared: Prepared, split: Split, unit: int, masks: Mapping[str, Tensor]
) -> Tensor:
    """Every image through the whole network; every layer multiplies its weights by its mask.

    ``masks[layer]``: 0 or 1, float32, as large as the layer; channels in torch's own order.
    """
    network = prepared.runner.network
    out = torch.empty(len(split))
    for first in range(0, len(split), BATCH):
        part = slice(first, first + BATCH)
        values = {"input": prepared.runner.batch(split, part).contiguous()}
        for step in network.steps:
            if step.op not in ("conv", "linear"):
                inputs = [values[name] for name in step.inputs]
                values[step.name] = apply_step(network, step, inputs)
                continue
            weight = network.weights[step.name] * masks[step.name]
            (name,), bias = step.inputs, network.biases.get(step.name)
            values[step.name] = (
                F.linear(values[name], weight, bias)
                if step.op == "linear"
                else F.conv2d(values[name], weight, bias, **step.settings)
            )
        out[part] = values[network.last][:, unit].cpu()
    return out


class Naive:
    """The whole network, every layer masked by a product, on every image at every level."""

    def __init__(self, prepared: Prepared, unit: int, split: Split | None = None) -> None:
        self.prepared, self.unit = prepared, unit
        self.split = split or prepared.extraction

    def stage(self, assigned: StageLevels, fixed: Mapping[str, Tensor]) -> Run:
        """How one stage runs at a level; ``fixed``: the masks of the stage before."""

        def run(t: int) -> Tensor:
            return self.circuit({**fixed, **assigned.kept(t)})

        return run

    def circuit(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Target activations [N] of one mask on the split."""
        network, masks = self.prepared.runner.network, {}
        for name in network.layers():
            weight = network.weights[name]
            masks[name] = torch.ones_like(weight, memory_format=torch.contiguous_format)
            if name in kept:
                row = slice(self.unit, self.unit + 1) if name == network.last else slice(None)
                masks[name][row] = kept[name].to(weight.dtype)
        return masked_forward(self.prepared, self.split, self.unit, masks)


class InPlace:
    """One copy of the weights, zeroed level by level; the fc stage starts from cached features."""

    def __init__(self, prepared: Prepared, unit: int, split: Split | None = None) -> None:
        self.prepared, self.unit = prepared, unit
        self.split = split or prepared.extraction

    def stage(self, assigned: StageLevels, fixed: Mapping[str, Tensor]) -> Run:
        """As `Naive.stage`; levels must come in ascending order."""
        weights = self._copy(fixed)

        def run(t: int) -> Tensor:
            for name, level in assigned.levels.items():
                weights[name].masked_fill_(level <= t, 0.0)
            return self._run(weights, cached=assigned.stage == "fc")

        return run

    def circuit(self, kept: Mapping[str, Tensor]) -> Tensor:
        """As `Naive.circuit`."""
        return self._run(self._copy(kept), cached=False)

    def _copy(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network = self.prepared.runner.network
        weights = {name: weight.clone() for name, weight in network.weights.items()}
        weights[network.last] = network.weights[network.last][self.unit : self.unit + 1].clone()
        for name, mask in kept.items():
            weights[name].masked_fill_(~mask, 0.0)
        return weights

    @torch.inference_mode()
    def _run(self, weights: Mapping[str, Tensor], cached: bool) -> Tensor:
        network, split = self.prepared.runner.network, self.split
        out = torch.empty(len(split))
        for first in range(0, len(split), BATCH):
            part = slice(first, first + BATCH)
            values = (
                {n: torch.from_numpy(v[part]).to(out) for n, v in split.features.items()}
                if cached
                else {"input": self.prepared.runner.batch(split, part)}
            )
            for step in network.steps:
                if step.name in values or any(name not in values for name in step.inputs):
                    continue
                inputs = [values[name] for name in step.inputs]
                if step.op not in ("conv", "linear"):
                    values[step.name] = apply_step(network, step, inputs)
                    continue
                bias = network.biases.get(step.name)
                if step.name == network.last and bias is not None:
                    bias = bias[self.unit : self.unit + 1]
                values[step.name] = (
                    F.linear(inputs[0], weights[step.name], bias)
                    if step.op == "linear"
                    else F.conv2d(inputs[0], weights[step.name], bias, **step.settings)
                )
            out[part] = values[network.last][:, 0]
        return out


def sweep(
    prepared: Prepared,
    assigned: StageLevels,
    judge: Judge,
    run: Run,
    start: Tensor | None,
    reference: Reference,
) -> Curve:
    """Every level of one stage by ``run``; level 0 is ``start`` and is not run, as in ours."""
    options = prepared.options
    count = len(assigned.pruned)
    assert start is not None
    rows = torch.stack([start, *(run(t) for t in range(1, count))])
    fitted = judge.fitted(rows, options.bias)
    csas = [each.csa for each in fitted]
    threshold = reference.threshold(options.stage_threshold(assigned.stage))
    kept = {t: assigned.relevant - pruned for t, pruned in enumerate(assigned.pruned)}
    values = [worth(each, options.bias) for each in fitted]
    chosen = choose_level(values, threshold, options.stop)
    return Curve(dict(enumerate(csas)), kept, chosen, rows[chosen])


def reference_of(prepared: Prepared, unit: int) -> Reference:
    """What a category's thresholds are fractions of."""
    extraction, heldout = judges(prepared, unit)
    unpruned = unpruned_baseline(extraction, heldout, prepared.options.bias)
    empty = empty_circuit(prepared, unit, extraction, heldout)
    return reference_in(unpruned, empty.extraction, prepared.options)


def extract(
    prepared: Prepared, unit: int, contender: type[Naive] | type[InPlace]
) -> dict[str, Curve]:
    """One category end to end, as `circuitcore.extraction.circuit.extract_circuit` does it."""
    judge, heldout = judges(prepared, unit)
    reference = reference_of(prepared, unit)
    found = contributions(prepared.runner.network, prepared.scoring_images(unit), unit)
    runner = contender(prepared, unit)
    kept: dict[str, Tensor] = {}
    start: Tensor | None = judge.unpruned
    curves: dict[str, Curve] = {}
    for stage in STAGES:
        assigned = stage_levels(prepared.runner.network, stage, found, unit, prepared.options)
        run = runner.stage(assigned, kept)
        curves[stage] = sweep(prepared, assigned, judge, run, start, reference)
        kept |= assigned.kept(curves[stage].level)
        start = curves[stage].activation
    heldout.at(contender(prepared, unit, prepared.heldout).circuit(kept), 0.0)
    return curves
