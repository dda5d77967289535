"""The network as a list of steps: traced once, checked, then run with any weights and masks.

A `Network` is a torchvision-style CNN in eval mode, reduced to convolutions, linear layers, batch
norms, rectifiers, pooling, flattening, additions and concatenations, and ending in a Linear, or in
a convolution whose channels are pooled one by one.  Anything else is refused with the name of the
layer, never run wrongly.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from circuitcore.network.ablation import Means


@dataclass(frozen=True)
class Step:
    """One operation: ``op`` of the values named ``inputs``, with its fixed ``settings``.

    ``form`` of a layer with weights: how they follow from the module's. They are its own, or
    ``linear``, a Linear's as a convolution's of one tap; ``remade``, made of them at every call.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    form: str = ""


@dataclass(frozen=True)
class Network:
    """Steps in execution order and the tensors they use, all float32 (or float64) and frozen.

    ``weights[layer]`` is [out, in] for linear and [out, in / groups, r, s] for conv steps;
    ``biases[layer]`` is [out] and absent where the layer has none; ``fixed[step]`` holds what no
    mask touches, such as a batch norm's (mean, variance, scale, shift).  ``others``: the module's
    state but for weights and biases, under its names there.  ``stages``: layers that are pruned
    together by name of the stage, in the order in which they are; a layer in none of them stays
    whole; ``head``: the layers of the classifier, or of a convolutional head, that are the stage
    ``fc`` by default; ``means``: what pruned weights are replaced by, None where by nothing.
    """

    steps: tuple[Step, ...]
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    fixed: dict[str, tuple[Tensor, ...]]
    others: dict[str, Tensor] = field(default_factory=dict)
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    head: frozenset[str] = frozenset()
    means: Means | None = None

    @property
    def last(self) -> str:
        """Name of the last layer, whose rows are the target units."""
        return next(s.name for s in reversed(self.steps) if s.op in ("conv", "linear"))

    @property
    def result(self) -> str:
        """Name of the value that holds the target units' activations, [N, outputs]."""
        return self.steps[-1].name

    @property
    def shifts(self) -> bool:
        """Whether a number added to the last layer's bias is added to its unit's result."""
        return self.result == self.last or all(
            step.op in ("mean", "flatten", "adaptive_avgpool")
            for step in self.steps[self.steps.index(self.step(self.last)) + 1 :]
        )

    @property
    def outputs(self) -> int:
        """Number of output units (categories)."""
        return self.weights[self.last].shape[0]

    @property
    def channels(self) -> int:
        """Channels of the input image: what the convolution that reads it does, or else three."""
        images = {"input"}
        for step in self.steps:
            if step.op == "conv" and step.inputs[0] in images:
                return self.weights[step.name].shape[1] * int(step.settings["groups"])
            if step.op in ("pad", "pad_same") and step.inputs[0] in images:
                images.add(step.name)
        return 3

    def layers(self, stage: str | None = None) -> list[str]:
        """Names of the prunable layers, of a ``stage`` or all of them, in module order."""
        groups = self.stages.values() if stage is None else [self.stages.get(stage, ())]
        names = {name for group in groups for name in group}
        return [step.name for step in self.steps if step.name in names]

    def weighted(self, op: str | None = None) -> list[str]:
        """Names of all ``conv`` or ``linear`` steps, or of both, in module order."""
        ops = ("conv", "linear") if op is None else (op,)
        return [step.name for step in self.steps if step.op in ops]

    def step(self, name: str) -> Step:
        """The step of this name."""
        return next(s for s in self.steps if s.name == name)

    def relevant_shape(self, layer: str) -> tuple[int, ...]:
        """Shape of the weights that can reach one target unit: in the last layer one row."""
        shape = tuple(self.weights[layer].shape)
        return (1, *shape[1:]) if layer == self.last else shape

    def relevant(self, stage: str | None = None) -> int:
        """Number of relevant weights of a stage, or of the whole network."""
        total = 0
        for layer in self.layers(stage):
            count = 1
            for size in self.relevant_shape(layer):
                count *= size
            total += count
        return total

    def late(self) -> list[str]:
        """Prunable layers that are swept from cached values: those of the first stage.

        And of the next ones, as long as no convolution is computed from any of them.
        """
        found: set[str] = set()
        for names in self.stages.values():
            more = found.union(names)
            convolves = any(self.step(name).op == "conv" for name in self.behind(more))
            if found and convolves:
                break
            found = more
        return [step.name for step in self.steps if step.name in found]

    def boundary(self) -> tuple[str, ...]:
        """Values computed without any of the `late` layers that steps behind these layers read.

        They are equal at every level of their stages: computed once, they are its inputs.  None
        where one of them is the image.
        """
        after = self.behind(self.late())
        before = {"input"} | {s.name for s in self.steps if s.name not in after}
        wanted = {i for s in self.steps if s.name in after for i in s.inputs if i in before}
        if "input" in wanted:
            return ()
        return tuple(s.name for s in self.steps if s.name in wanted)

    def after_boundary(self) -> set[str]:
        """Names of the boundary values and of all steps behind them; none without a boundary."""
        boundary = self.boundary()
        return {*boundary, *self.behind(self.late())} if boundary else set()

    def fc_chain(self) -> list[tuple[str, bool]] | None:
        """Linear layers that are a chain from the boundary to the result: (layer, ReLU follows?).

        None where anything but Linear and ReLU stands between them, or a value is read twice.
        """
        after = self.behind(self.late())
        chain: list[tuple[str, bool]] = []
        value = self.boundary()[0] if len(self.boundary()) == 1 else None
        for step in self.steps:
            if step.name not in after:
                continue
            if step.inputs != (value,) or step.op not in ("linear", "relu"):
                return None
            if step.op == "linear":
                chain.append((step.name, False))
            elif chain:
                chain[-1] = (chain[-1][0], True)
            value = step.name
        return chain

    def behind(self, names: Collection[str]) -> set[str]:
        """Names of the steps that are, or come after, one of these."""
        found: set[str] = set()
        for step in self.steps:
            if step.name in names or any(i in found for i in step.inputs):
                found.add(step.name)
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Network:
        """The same network on another device or in another precision."""

        def move(t: Tensor) -> Tensor:
            return t.to(device=device, dtype=dtype)

        return Network(
            self.steps,
            {k: move(v) for k, v in self.weights.items()},
            {k: move(v) for k, v in self.biases.items()},
            {k: tuple(move(each) for each in v) for k, v in self.fixed.items()},
            self.others,
            self.stages,
            self.head,
            self.means and self.means.to(device, dtype),
        )


def needed_steps(steps: Sequence[Step], wanted: Collection[str]) -> list[Step]:
    """The steps that the values ``wanted`` depend on, in order; no others can reach them."""
    found, kept = set(wanted), []
    for step in reversed(steps):
        if step.name in found:
            kept.append(step)
            found.update(step.inputs)
    return kept[::-1]
