"""Run levels of one stage on images, in the cheapest exact way its layers allow, and say the cost.

What the levels share is computed once: the fc stage starts from the cached boundary values and
surveys its level bytes once; the conv stage carries the fixed fc circuit compacted.  Every way can
count the multiply-adds of a run before it runs, from the level bytes and shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.passes import (
    Kept,
    blank,
    chain_centres,
    chain_layers,
    circuit_override,
    every_level_of,
    from_boundary,
    shrunk,
)
from circuitcore.engine.replay import flat_levels
from circuitcore.engine.runner import Runner
from circuitcore.engine.splits import Split
from circuitcore.engine.stage_plan import LayerPlan, StagePlan, added
from circuitcore.kernels.masked_linear.operation import (
    chain_survey,
    masked_chain,
    masked_chain_plan,
)
from circuitcore.kernels.masked_linear.reference import Layer
from circuitcore.kernels.spans import span
from circuitcore.machine.arrivals import awaits, unwaited
from circuitcore.network.compact.compaction import compact
from circuitcore.network.compact.pieces import Compacted
from circuitcore.network.forward import (
    Masks,
    Override,
    Tally,
    forward,
    mean_outputs,
    target_row,
)
from circuitcore.network.graph import Network
from circuitcore.network.repeats import Repeats
from circuitcore.network.sizes import multiply_adds
from circuitcore.scoring.levels import StageLevels


class Executor:
    """One stage of one category's sweep on the extraction set.

    ``look(levels, images, precise)``: target activations float32 [T, n], in the sweep's precision
    or in float32; ``plan(levels, count)``: what ``look`` will do on ``count`` images.
    """

    def __init__(
        self,
        runner: Runner,
        split: Split,
        unit: int,
        assigned: StageLevels,
        fixed: Kept,
        tally: Tally,
    ) -> None:
        self.runner, self.split, self.unit = runner, split, unit
        self.assigned, self.fixed, self.tally = assigned, fixed, tally
        self.features = from_boundary(runner.network, split, {*assigned.levels, *fixed})
        self._ready()

    def _ready(self) -> None:
        """Compute what all runs share."""

    def network(self, precise: bool) -> Network:
        """The network in float32, or in the sweep's precision."""
        return self.runner.network if precise else self.runner.low_network

    def exact(self, precise: bool) -> bool:
        """Whether a run is in IEEE float32 either way: one set of weights for both then."""
        return precise or not self.runner.machine.low

    def _chunks(
        self,
        images: np.ndarray,
        precise: bool,
        levels: int,
        run: Callable[[dict[str, Tensor]], Tensor],
    ) -> Tensor:
        network = self.network(precise)
        return self.runner.run_chunks(
            self.split, images, network, self.features, levels, run, precise
        )

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        raise NotImplementedError

    def plan(self, levels: Sequence[int], count: int) -> StagePlan:
        layers = self._layers(levels, count)
        stage = self.assigned.stage
        return StagePlan(stage=stage, images=count, levels=tuple(levels), layers=layers)

    def planned(self, levels: Sequence[int], count: int) -> int:
        """Multiply-adds of ``look`` on ``count`` images."""
        return self.plan(levels, count).multiply_adds

    def _layers(self, levels: Sequence[int], count: int) -> tuple[LayerPlan, ...]:
        raise NotImplementedError

    def _masked(self, count: int, ran: Sequence[tuple[int, str]]) -> tuple[LayerPlan, ...]:
        """Plans of (level, layer) pairs where nothing is compacted; of the last layer one row."""
        network = self.runner.network
        each = multiply_adds(network, self.split.pixels.shape[1:])
        each[network.last] //= network.outputs
        return tuple(
            LayerPlan(level=t, layer=n, path="masked", rows=network.relevant_shape(n)[0],
                      columns=network.weights[n].shape[1], multiply_adds=count * each[n])
            for t, n in ran
        )  # fmt: skip


class ChainExecutor(Executor):
    """Fully connected layers that form one masked chain: all levels in one pass."""

    def _ready(self) -> None:
        self.chains: dict[bool, list[Layer]] = {}
        some = next(iter(self.split.features.values()))
        network = self.runner.network
        x = network.weights[network.last].new_empty(0, some.shape[1])
        repeats = self.runner.sizes.repeats
        self.source = None if repeats is None else repeats.source
        self.survey = chain_survey(x, self.chain(True), self.runner.machine.impl, self.source)

    def chain(self, precise: bool) -> list[Layer]:
        """The layers in float32, or in the sweep's precision; made once."""
        if precise not in self.chains:
            network = self.network(precise)
            names = [name for name, _ in network.fc_chain() or ()]
            levels = every_level_of(network, names, self.assigned.levels, self.fixed)
            self.chains[precise] = chain_layers(network, self.unit, levels)
        return self.chains[precise]

    @unwaited
    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        found = self._look(levels, images, precise, check=False)
        if awaits():  # whoever waits looks for NaN, and asks again
            return found
        # a pruned weight that met an infinity shows as NaN to the end of the chain
        return self._look(levels, images, precise) if found.isnan().any() else found

    def _look(
        self, levels: Sequence[int], images: np.ndarray, precise: bool, check: bool = True
    ) -> Tensor:
        chain, centres = self.chain(self.exact(precise)), chain_centres(self.network(precise))
        count = self.tally.add
        names = [name for name, _ in self.runner.network.fc_chain() or ()]

        def run(values: dict[str, Tensor]) -> Tensor:
            (x,) = values.values()
            impl, survey = self.runner.machine.impl, self.survey
            with span("kernel", "masked_chain", len(x)):
                return masked_chain(
                    x, chain, levels, impl=impl, check=check, survey=survey, source=self.source,
                    count=count, centres=centres, names=names,
                )  # fmt: skip

        return self._chunks(images, precise, len(levels), run)

    def _layers(self, levels: Sequence[int], count: int) -> tuple[LayerPlan, ...]:
        size = self.runner.feature_chunk(len(levels))
        chain = self.chain(self.exact(False))
        names = [name for name, _ in self.runner.network.fc_chain() or ()]
        whole, rest = divmod(count, size)
        plans = [
            (times, masked_chain_plan(chain, levels, batch, self.survey))
            for times, batch in ((whole, size), (1, rest))
            if times and batch
        ]
        return added(
            [
                (times, [LayerPlan(**{**s._asdict(), "layer": names[s.layer]}) for s in steps])
                for times, steps in plans
            ]
        )


class CompactExecutor(Executor):
    """Any layers, level by level: each level's circuit compacted, then run on the images.

    The fixed fc circuit is compacted once, so that no level scans it again.
    """

    def _ready(self) -> None:
        self.plans: dict[tuple[int, bool], Compacted] = {}
        self.small: dict[bool, tuple[Network, Kept, Repeats | None]] = {}
        self.ready: tuple[tuple[int, bool], Compacted] | None = None

    def _override(self, t: int, precise: bool) -> tuple[Network, Override]:
        if precise not in self.small:
            network, fixed = shrunk(self.network(precise), self.unit, self.fixed)
            repeats = self.runner.sizes.repeats
            if repeats is not None and repeats.layer not in {**fixed, **self.assigned.levels}:
                network, _ = repeats.once(network)  # the same at every level
                repeats = None
            self.small[precise] = network, fixed, repeats
        network, fixed, repeats = self.small[precise]
        return circuit_override(network, self.unit, {**fixed, **self.assigned.kept(t)}, repeats)

    def survivors(self, t: int, precise: bool) -> Compacted:
        """What survives at a level: no weights yet, so that all levels' plans can be kept."""
        if (t, precise) not in self.plans:
            network, override = self._override(t, precise)
            found = compact(network, override, blank(self.split, network, self.features))
            self.plans[t, precise] = found
        return self.plans[t, precise]

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        exact = self.exact(precise)
        return torch.cat([self._level(t, images, exact) for t in levels])

    def _level(self, t: int, images: np.ndarray, precise: bool) -> Tensor:
        if self.ready is None or self.ready[0] != (t, precise):
            with span("kernel", "compaction"):
                _, override = self._override(t, precise)
                self.ready = (t, precise), self.survivors(t, precise).gathered(override)
        found = self.ready[1]
        with span("level", self.assigned.stage, t):
            return self._chunks(images, precise, 1, lambda v: found.run(v, self.tally)[None])

    def _layers(self, levels: Sequence[int], count: int) -> tuple[LayerPlan, ...]:
        return tuple(
            LayerPlan(level=t, layer=p.step.name, path="compact", rows=len(p.index),
                      columns=len(p.source), multiply_adds=count * p.multiply_adds)
            for t in levels
            for p in self.survivors(t, self.exact(False)).pieces
            if p.source is not None
        )  # fmt: skip


class ReplayExecutor(Executor):
    """Any layers on a GPU, from the images: written where captured passes read them.

    The library's convolutions of masked weights are the bar: masking all of AlexNet's costs as much
    memory traffic as one image's activations, so nothing is gained by masking inside a product.
    """

    def _ready(self) -> None:
        levels, convolutions = self.assigned.levels, self.runner.replay(False).convolutions
        every = every_level_of(self.runner.network, convolutions, levels, self.fixed)
        self.flat = flat_levels(every or levels, convolutions)
        self.apart = {n: level for n, level in levels.items() if n not in every}

    @unwaited
    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        replay = self.runner.replay(precise)
        replay.hold(self, self.unit, self.fixed, levels=True)
        row = target_row(replay.network, self.unit).weights
        weights = {**replay.network.weights, **row}
        apart = {name: (weights[name], level) for name, level in self.apart.items()}
        writes = [partial(replay.level, self.flat, t, apart) for t in levels]
        with span("level", self.assigned.stage, levels[0]), self.runner.products(precise):
            return replay.look(self.split, images, writes, self.tally)

    def _layers(self, levels: Sequence[int], count: int) -> tuple[LayerPlan, ...]:
        count = sum(self.runner.replay(False).batches(count))
        return self._masked(count, [(t, n) for t in levels for n in self.runner.network.weighted()])


class MaskedExecutor(Executor):
    """Any layers, all levels in one pass of masked kernels, nothing compacted."""

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        network, impl = self.network(precise), self.runner.machine.impl
        network, override = circuit_override(network, self.unit, self.fixed)
        masked, means = self.assigned.levels, network.means
        biases = {**override.biases, **mean_outputs(network, masked, self.unit)}
        override = replace(override, biases=biases)
        masks = Masks(masked, levels, {} if means is None else means.inputs)

        def run(values: dict[str, Tensor]) -> Tensor:
            out = forward(network, values, [network.result], override=override, masks=masks,
                          impl=impl, tally=self.tally)[0]  # fmt: skip
            return out.reshape(len(levels), -1)

        return self._chunks(images, precise, len(levels), run)

    def _layers(self, levels: Sequence[int], count: int) -> tuple[LayerPlan, ...]:
        network = self.runner.network
        behind = network.after_boundary()
        run = [n for n in network.weighted() if n in behind or not self.features]
        apart = network.behind(set(self.assigned.levels))
        ran = [(t, n) for t in levels for n in run if n in apart or t == levels[0]]
        return self._masked(count, ran)


def executor(
    runner: Runner, split: Split, unit: int, assigned: StageLevels, fixed: Kept, tally: Tally
) -> Executor:
    """How a stage's levels are run.

    On a CPU the library's convolutions on compacted weights beat any masked kernel, on a GPU those
    of captured passes; Linear layers from the boundary on run at all levels at once wherever they
    are one chain.
    """
    gpu, chain = runner.machine.device.type == "cuda", runner.network.fc_chain()
    features = from_boundary(runner.network, split, {*assigned.levels, *fixed})
    kind: type[Executor] = MaskedExecutor if runner.machine.masked_kernels else CompactExecutor
    if features and chain is not None:
        kind = ChainExecutor
    elif gpu and not features:
        kind = ReplayExecutor
    return kind(runner, split, unit, assigned, fixed, tally)
