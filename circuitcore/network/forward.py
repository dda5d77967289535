"""Run a network: plainly, from cached values, or at many levels of a nested sweep at once.

A value is [N, ...] while it is the same at every level and [T, N, ...] once a masked layer has told
the levels apart, so whatever comes before the first masked layer is computed once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.kernels.masked_conv2d.operation import masked_conv2d
from circuitcore.kernels.masked_linear.operation import masked_linear
from circuitcore.kernels.masked_linear.reference import centred
from circuitcore.kernels.spans import span, work
from circuitcore.network.ablation import carried
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers.table import apply_step


@dataclass
class Tally:
    """Multiply-adds of convolutions and linear layers executed so far."""

    multiply_adds: int = 0

    def add(self, multiply_adds: int) -> None:
        """Count some more."""
        self.multiply_adds += multiply_adds


@dataclass(frozen=True)
class Masks:
    """Level bytes of some layers and the levels to run: a weight is kept at ``t`` iff byte > t.

    ``levels[layer]`` is uint8, shaped like the layer's (relevant) weights; layers not named are
    not masked.  ``means``: `ablation.Means.inputs`, where pruned weights carry those; the biases of
    the layers named are mean outputs then (`mean_outputs`).
    """

    levels: Mapping[str, Tensor]
    ts: Sequence[int]
    means: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Override:
    """Weights, biases and fixed tensors that stand in for the network's own, by layer name."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    fixed: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def normed(self, network: Network) -> Network:
        """The network with these fixed tensors."""
        return replace(network, fixed={**network.fixed, **self.fixed}) if self.fixed else network


def target_row(network: Network, unit: int) -> Override:
    """Only row ``unit`` of the last layer, and of what follows: all that one target needs."""
    last, row = network.last, slice(unit, unit + 1)
    biases = {last: network.biases[last][row]} if last in network.biases else {}
    behind = network.steps[network.steps.index(network.step(last)) + 1 :]
    fixed = {
        step.name: tuple(each[row] for each in network.fixed[step.name])  # [channels] each
        for step in behind
        if step.name in network.fixed
    }
    return Override({last: network.weights[last][row]}, biases, fixed)


def mean_outputs(network: Network, layers: Collection[str], unit: int) -> dict[str, Tensor]:
    """What these layers give for their mean inputs, by name, in the network's precision.

    Of the last layer for ``unit``.  Their biases while they are masked, where pruned weights carry
    the mean of their inputs; none where they carry nothing.
    """
    if network.means is None:
        return {}
    found = {}
    for name in layers:
        own = network.means.outputs[name][rows_of(network, name, unit)]
        found[name] = own.to(network.weights[name].dtype)
    return found


def rows_of(network: Network, layer: str, unit: int) -> slice:
    """Outputs of a layer that one target needs: of the last one its own."""
    alone = layer == network.last and network.outputs > 1
    return slice(unit, unit + 1) if alone else slice(None)


def forward(
    network: Network,
    values: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    override: Override | None = None,
    masks: Masks | None = None,
    impl: str = "auto",
    tally: Tally | None = None,
    record: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> list[Tensor]:
    """Compute the values named ``outputs`` from ``values`` (``{"input": images}`` or cached ones).

    Returns one tensor an output: [N, ...], or [T, N, ...] where ``masks`` reach it.  ``record``
    receives (input, pre-activation) of every conv and linear layer run.  Steps that the outputs do
    not need, or that lie behind given values, are not run; values are dropped after their last use.
    """
    override, tally = override or Override(), tally or Tally()
    network = override.normed(network)
    plan, readers = _needed_steps(network, values, outputs)
    alive: dict[str, Tensor] = dict(values)
    spread: set[str] = set()  # values that have a leading level axis
    fused: dict[str, str] = {}
    for step in plan:
        inputs = [alive[i] for i in step.inputs]
        told_apart = any(i in spread for i in step.inputs)
        if step.name in fused:  # its rectifier already ran in the layer's epilogue
            alive[step.name] = alive[fused[step.name]]
            told_apart = fused[step.name] in spread
        elif step.op in ("conv", "linear"):
            relu = None if record is not None else only_relu(plan, step, outputs)
            with span("layer", step.name):
                out, told_apart = _weighted(
                    network, step, inputs[0], told_apart, override, masks, relu is not None, impl
                )
                executed = out.numel() * _fan_in(network, step)
                work(executed, inputs[0], network.weights[step.name], out)
            tally.multiply_adds += executed
            if record is not None:
                record[step.name] = (inputs[0], out)
            if relu is not None:
                fused[relu] = step.name
            alive[step.name] = out
        else:
            with span("layer", step.name):
                alive[step.name] = _plain(network, step, inputs, told_apart, spread)
        if told_apart:
            spread.add(step.name)
        for name in set(step.inputs):
            readers[name] -= 1
            if not readers[name] and name not in outputs:
                alive.pop(name, None)
    return [alive[name] for name in outputs]


def _weighted(
    network: Network,
    step: Step,
    x: Tensor,
    told_apart: bool,
    override: Override,
    masks: Masks | None,
    relu: bool,
    impl: str,
) -> tuple[Tensor, bool]:
    """A conv or linear layer: masked at the levels asked for, or plain.  (output, level axis?)"""
    weight = override.weights.get(step.name, network.weights[step.name])
    bias = override.biases.get(step.name, network.biases.get(step.name))
    if masks is not None and step.name in masks.levels:
        level, mean = masks.levels[step.name], masks.means.get(step.name)
        if step.op == "linear":
            x = x if mean is None else centred(x, mean)
            out = masked_linear(x, weight, level, masks.ts, bias, relu=relu, impl=impl)
        elif mean is not None and bias is not None:
            out = masked_conv2d(x, weight, level, masks.ts, relu=False, impl=impl, **step.settings)
            kept = (torch.where(level > t, weight, 0) for t in masks.ts)
            moved = torch.stack([bias - carried(each, mean) for each in kept])  # [T, O]
            out += moved.to(out.dtype)[:, None, :, None, None]
            out = torch.relu_(out) if relu else out
        else:
            out = masked_conv2d(
                x, weight, level, masks.ts, bias, relu=relu, impl=impl, **step.settings
            )
        return out, True
    flat = x.flatten(0, 1) if told_apart else x
    if step.op == "linear":
        out = F.linear(flat, weight, bias)
    else:
        out = F.conv2d(flat, weight, bias, **step.settings)
    if relu:
        out = torch.relu_(out)
    return (out.unflatten(0, x.shape[:2]) if told_apart else out), told_apart


def _plain(
    network: Network, step: Step, inputs: list[Tensor], told_apart: bool, spread: set[str]
) -> Tensor:
    if not told_apart:
        out = apply_step(network, step, inputs)
        work(0, *inputs, out)
        return out
    count = next(v.shape[0] for v, i in zip(inputs, step.inputs, strict=True) if i in spread)
    flat = [
        v.flatten(0, 1) if i in spread else v.expand(count, *v.shape).flatten(0, 1)
        for v, i in zip(inputs, step.inputs, strict=True)
    ]
    out = apply_step(network, step, flat)
    work(0, *inputs, out)
    return out.unflatten(0, (count, -1))


def _fan_in(network: Network, step: Step) -> int:
    shape = network.weights[step.name].shape
    return int(shape[1:].numel())


def only_relu(plan: Sequence[Step], step: Step, outputs: Sequence[str]) -> str | None:
    """The rectifier that alone reads this layer, if its output is wanted nowhere else."""
    readers = [s for s in plan if step.name in s.inputs]
    if len(readers) == 1 and readers[0].op == "relu" and step.name not in outputs:
        return readers[0].name
    return None


def _needed_steps(
    network: Network, values: Mapping[str, Tensor], outputs: Sequence[str]
) -> tuple[list[Step], dict[str, int]]:
    """Steps to run, in order, and how many of them read each value."""
    rest = [step for step in network.steps if step.name not in values]
    plan = needed_steps(rest, set(outputs))
    readers = Counter(name for step in plan for name in set(step.inputs))
    if "input" in readers and "input" not in values:
        raise ValueError(f"the given values {sorted(values)} do not lead to {list(outputs)}")
    return plan, readers
