"""Run levels of one stage on images, in the cheapest exact way its layers allow, and say the cost.

What the levels share is computed once: the fc stage starts from the cached boundary values and
surveys its level bytes once; the conv stage carries the fixed fc circuit compacted.  Every way can
count the multiply-adds of a run before it runs, from the level bytes and shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from circuitcore.chunks import in_chunks
from circuitcore.compact import compact
from circuitcore.compacted import Compacted
from circuitcore.cost import multiply_adds
from circuitcore.forward import Masks, Override, Tally, forward, target_row
from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked_linear import (
    chain_survey,
    compacted_chain,
    masked_chain,
    masked_chain_multiply_adds,
)
from circuitcore.levels import StageLevels
from circuitcore.network import Network
from circuitcore.prepare import FORWARD_CHUNK, Prepared, Split
from circuitcore.spans import span

Kept = Mapping[str, Tensor]
"""Bool by layer, shaped like its relevant weights: which are kept; layers not named are whole."""


def circuit_override(network: Network, unit: int, kept: Kept) -> Override:
    """The network's weights with everything outside ``kept`` set to 0, one target row at the end.

    A last layer of one row already is the target's.
    """
    target = target_row(network, unit) if network.outputs > 1 else Override()
    weights = dict(target.weights)
    for name, mask in kept.items():
        whole = weights.get(name, network.weights[name])
        weights[name] = torch.where(mask, whole, whole.new_zeros(()))
    return Override(weights, target.biases)


@torch.inference_mode()
def activations(prepared: Prepared, split: Split, unit: int, kept: Kept) -> Tensor:
    """Target activations float32 [N] of one circuit on a split, on the CPU.

    Cost: a compacted forward pass a image, from the cached boundary values where no conv layer is
    masked and the split has them, else from the images.
    """
    features = bool(split.features) and not set(kept) & set(prepared.network.layers("conv"))
    network, kept = shrunk(prepared.network, unit, kept)
    override = circuit_override(network, unit, kept)
    found = compact(network, override, blank(split, network, features)).gathered(override)
    everything = np.arange(len(split))
    return run_chunks(
        prepared, split, everything, network, features, 1, lambda values: found.run(values)[None]
    )[0]


def shrunk(network: Network, unit: int, kept: Kept) -> tuple[Network, Kept]:
    """The network with the masked fc layers compacted, and the masks that are left to apply.

    What follows then scans convolutions and the fc units that survive, not the fc layers whole.
    Both as given where the fc layers are not one masked chain.
    """
    chain = network.fc_chain() or ()
    if not chain or not {name for name, _ in chain} <= set(kept):
        return network, kept
    target = target_row(network, unit)
    layers = [
        (
            target.weights.get(name, network.weights[name]),
            kept[name].view(torch.uint8),
            target.biases.get(name, network.biases.get(name)),
            relu,
        )
        for name, relu in chain
    ]
    left = compacted_chain(layers, 0)
    if left is None:
        return network, kept
    small = {name: layer for (name, _), layer in zip(chain, left, strict=True)}
    weights = {name: weight for name, (weight, _) in small.items()}
    biases = {name: b for name, b in network.biases.items() if name not in small}
    biases |= {name: bias for name, (_, bias) in small.items() if bias is not None}
    network = replace(network, weights={**network.weights, **weights}, biases=biases)
    return network, {name: mask for name, mask in kept.items() if name not in small}


def blank(split: Split, network: Network, features: bool) -> dict[str, Tensor]:
    """Zeros in place of one image's values, to compact a circuit with."""
    some = next(iter(network.weights.values()))
    shapes = (
        {name: stored.shape[1:] for name, stored in split.features.items()}
        if features
        else {"input": split.pixels.shape[1:]}
    )
    return {name: some.new_zeros((1, *shape)) for name, shape in shapes.items()}


def run_chunks(
    prepared: Prepared,
    split: Split,
    images: np.ndarray,
    network: Network,
    features: bool,
    levels: int,
    run: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:
    """``run`` on chunks of images, from boundary values or pixels: float32 [levels, n], CPU.

    The chunks are as large as the memory budget allows for ``levels`` at once.
    """
    dtype = next(iter(network.weights.values())).dtype
    out = torch.empty(levels, len(images))

    def work(part: slice) -> None:
        at = images[part]
        if features:
            values = {
                name: torch.from_numpy(np.ascontiguousarray(stored[at])).to(prepared.device)
                for name, stored in split.features.items()
            }
        else:
            values = {"input": prepared.batch(split, at)}
        out[:, part] = run({name: value.to(dtype) for name, value in values.items()}).float().cpu()

    if features:
        size = prepared.chunk(levels * prepared.feature_bytes)
    else:
        size = min(prepared.chunk(levels * prepared.image_bytes), FORWARD_CHUNK)
    fallback = not prepared.options.no_fallback
    in_chunks(len(images), size, work, fallback=fallback, note=prepared.note)
    return out


class Executor:
    """One stage of one category's sweep on the extraction set.

    ``look(levels, images, precise)``: target activations float32 [T, n], in the sweep's precision
    or in float32; ``planned(levels, count)``: multiply-adds of ``look`` on ``count`` images.
    """

    def __init__(
        self, prepared: Prepared, unit: int, assigned: StageLevels, fixed: Kept, tally: Tally
    ) -> None:
        self.prepared, self.unit, self.assigned, self.tally = prepared, unit, assigned, tally
        self.split = prepared.extraction
        self.fixed = fixed
        self.features = assigned.stage == "fc" and bool(self.split.features)

    def network(self, precise: bool) -> Network:
        """The network in float32, or in the sweep's precision."""
        return self.prepared.network if precise else self.prepared.sweep_network

    def exact(self, precise: bool) -> bool:
        """Whether a run is in float32 either way: one set of weights for both then."""
        return precise or self.prepared.dtype == torch.float32

    def _chunks(
        self,
        images: np.ndarray,
        precise: bool,
        levels: int,
        run: Callable[[dict[str, Tensor]], Tensor],
    ) -> Tensor:
        network = self.network(precise)
        return run_chunks(self.prepared, self.split, images, network, self.features, levels, run)

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        raise NotImplementedError

    def planned(self, levels: Sequence[int], count: int) -> int:
        raise NotImplementedError


class ChainExecutor(Executor):
    """Fully connected layers that form one masked chain: all levels in one pass."""

    def __init__(
        self, prepared: Prepared, unit: int, assigned: StageLevels, fixed: Kept, tally: Tally
    ) -> None:
        super().__init__(prepared, unit, assigned, fixed, tally)
        self.chain = cache(self._chain)
        some = next(iter(self.split.features.values()))
        x = self.prepared.network.weights[self.prepared.network.last].new_empty(0, some.shape[1])
        self.survey = chain_survey(x, self.chain(True), self.prepared.options.impl)

    def _chain(self, precise: bool) -> list[tuple[Tensor, Tensor, Tensor | None, bool]]:
        """The layers as (weight, level, bias, ReLU follows)."""
        network = self.network(precise)
        override = circuit_override(network, self.unit, self.fixed)
        return [
            (
                override.weights.get(name, network.weights[name]),
                self.assigned.levels[name],
                override.biases.get(name, network.biases.get(name)),
                relu,
            )
            for name, relu in network.fc_chain() or ()
        ]

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        chain = self.chain(self.exact(precise))
        count = self.tally.add

        def run(values: dict[str, Tensor]) -> Tensor:
            (x,) = values.values()
            impl, survey = self.prepared.options.impl, self.survey
            with span("kernel", "masked_chain", len(x)):
                return masked_chain(x, chain, levels, impl=impl, survey=survey, count=count)

        return self._chunks(images, precise, len(levels), run)

    def planned(self, levels: Sequence[int], count: int) -> int:
        size = self.prepared.chunk(len(levels) * self.prepared.feature_bytes)
        chain = self.chain(self.exact(False))
        whole, rest = divmod(count, size)
        each = [(size, whole), (rest, 1)] if rest else [(size, whole)]
        return sum(
            times * masked_chain_multiply_adds(chain, levels, batch, self.survey)
            for batch, times in each
            if times
        )


class CompactExecutor(Executor):
    """Any layers, level by level: each level's circuit compacted, then run on the images.

    The fixed fc circuit is compacted once, so that no level scans it again.
    """

    def __init__(
        self, prepared: Prepared, unit: int, assigned: StageLevels, fixed: Kept, tally: Tally
    ) -> None:
        super().__init__(prepared, unit, assigned, fixed, tally)
        self.plan = cache(self._plan)
        self.shrunk = cache(lambda precise: shrunk(self.network(precise), unit, self.fixed))
        self.ready: tuple[tuple[int, bool], Compacted] | None = None

    def _override(self, t: int, precise: bool) -> tuple[Network, Override]:
        network, fixed = self.shrunk(precise)
        return network, circuit_override(network, self.unit, {**fixed, **self.assigned.kept(t)})

    def _plan(self, t: int, precise: bool) -> Compacted:
        """What survives at a level: no weights yet, so that all levels' plans can be kept."""
        network, override = self._override(t, precise)
        return compact(network, override, blank(self.split, network, self.features))

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        exact = self.exact(precise)
        return torch.cat([self._level(t, images, exact) for t in levels])

    def _level(self, t: int, images: np.ndarray, precise: bool) -> Tensor:
        if self.ready is None or self.ready[0] != (t, precise):
            _, override = self._override(t, precise)
            self.ready = (t, precise), self.plan(t, precise).gathered(override)
        found = self.ready[1]
        with span("level", self.assigned.stage, t):
            return self._chunks(images, precise, 1, lambda v: found.run(v, self.tally)[None])

    def planned(self, levels: Sequence[int], count: int) -> int:
        return count * sum(self.plan(t, self.exact(False)).multiply_adds for t in levels)


class MaskedExecutor(Executor):
    """Any layers, all levels in one pass of masked kernels, nothing compacted."""

    def look(self, levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        network, impl = self.network(precise), self.prepared.options.impl
        override = circuit_override(network, self.unit, self.fixed)
        masks = Masks(self.assigned.levels, levels)

        def run(values: dict[str, Tensor]) -> Tensor:
            out = forward(network, values, [network.last], override=override, masks=masks,
                          impl=impl, tally=self.tally)[0]  # fmt: skip
            return out.reshape(len(levels), -1)

        return self._chunks(images, precise, len(levels), run)

    def planned(self, levels: Sequence[int], count: int) -> int:
        network = self.prepared.network
        each = multiply_adds(network, self.split.pixels.shape[1:])
        each[network.last] //= network.outputs
        run = network.layers("fc") if self.features else network.layers()
        apart = network.behind(set(self.assigned.levels))
        return count * sum(each[n] * (len(levels) if n in apart else 1) for n in run)


def executor(
    prepared: Prepared, unit: int, assigned: StageLevels, fixed: Kept, tally: Tally
) -> Executor:
    """How a stage's levels are run.

    On a CPU the library's convolutions on compacted weights beat any masked kernel; the fc layers
    run at all levels at once wherever they are one chain.
    """
    chain = prepared.network.fc_chain()
    masked = assigned.levels
    whole = chain is not None and {name for name, _ in chain} == set(masked)
    if assigned.stage == "fc" and whole and prepared.extraction.features:
        return ChainExecutor(prepared, unit, assigned, fixed, tally)
    triton = choose(prepared.options.impl, next(iter(masked.values()))) == "triton"
    kind = MaskedExecutor if triton else CompactExecutor
    return kind(prepared, unit, assigned, fixed, tally)
