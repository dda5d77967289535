"""A network cut at other targets than its outputs: a layer's units, or directions over channels.

What leads to the target stays, the steps behind it go.  A unit's relevant weights are its own row
of the layer it belongs to, as those of a category are; a direction reads every channel, so all
weights before it are relevant, and the direction itself is a layer that is never pruned.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from circuitcore.errors import UsageError, nearest
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers.shapes import Size
from circuitcore.network.layers.table import channelwise

MIDDLE = tuple(Size(1, (("floordiv", Size(1, (("of", 0, axis),)), 2),)) for axis in (2, 3))
POOLS: dict[str, tuple[str, dict[str, Any]]] = {  # --pool-target: a layer and its settings
    "max": ("reduced", {"how": "amax", "axes": (2, 3), "keepdim": False}),
    "mean": ("mean", {}),
    "centre": ("indexed_places", {"index": (slice(None), *MIDDLE)}),
}
DIRECTION = "direction"
ONE_TAP = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def step_called(network: Network, label: str) -> str:
    """The step that a module's name, or a step's own, means.

    Raises UsageError where there is none, or the module is called more than once.
    """
    names = [step.name for step in network.steps]
    if label in names:
        return label
    if inside := [name for name in names if name.startswith(f"{label}.")]:
        raise UsageError(
            f"--target {label}: a module of several layers: name the one whose output is meant, "
            f"such as {inside[-1]}"
        )
    plain = re.escape(label.replace(".", "_"))
    found = [step for step in network.steps if re.fullmatch(rf"{plain}(_\d+)?", step.name)]
    if not found:
        raise UsageError(f"--target {label}: the network has no such layer{nearest(label, names)}")
    if len(found) > 1:
        each = ", ".join(f"{s.name} (reads {' and '.join(s.inputs)})" for s in found)
        raise UsageError(f"--target {label}: stands for several values, name one: {each}")
    return found[0].name


def is_map(network: Network, name: str) -> bool:
    """Whether a value has positions: [N, C, H, W], not [N, C]."""
    while name != "input":
        step = network.step(name)
        if step.op in ("conv", "linear", "flatten", "mean"):
            return step.op == "conv"
        name = step.inputs[0]
    return True


def unit_layer(network: Network, name: str) -> str:
    """The layer whose unit c alone gives unit c of value ``name``.

    Raises UsageError where there is no such layer.
    """
    step = network.step(name)
    while channelwise(step.op) and step.op != "flatten" and step.inputs != ("input",):
        step = network.step(step.inputs[0])
    if step.op not in ("conv", "linear"):
        raise UsageError(
            f"--target {name}: a unit of it is no unit of one layer ({step.name} stands between): "
            "name one of the layers before it, or give a direction over its channels"
        )
    if step.settings.get("groups", 1) != 1:
        raise UsageError(
            f"--target {name}: a channel of the grouped convolution {step.name} reads a part of "
            "its input, which has no row of its own: give a direction that is 1 at the channel"
        )
    return step.name


def channels(network: Network, name: str) -> int:
    """How many units or channels a value has that has not been flattened."""
    step = network.step(name)
    while step.op not in ("conv", "linear"):
        if step.op == "cat":
            return sum(channels(network, each) for each in step.inputs)
        if step.op == "flatten" or step.inputs[0] == "input":
            raise UsageError(f"--target {name}: has no layer before it whose channels it has")
        step = network.step(step.inputs[0])
    return network.weights[step.name].shape[0]


def cut(network: Network, name: str, pool: str, directions: Tensor | None = None) -> Network:
    """What leads to value ``name``: its units, or its products with ``directions`` [K, channels].

    The result is [N, units] or [N, K]; a value with positions is combined over them by ``pool``
    (``max``, ``mean``, or ``centre``: row H // 2, column W // 2), a direction after the product.
    Raises UsageError where the value has no units of one layer.
    """
    if directions is None:
        unit_layer(network, name)
    steps, own = needed_steps(network.steps, {name}), is_map(network, name)
    weights = {s.name: network.weights[s.name] for s in steps if s.name in network.weights}
    last = name
    if directions is not None:
        last = DIRECTION
        steps.append(Step(last, "conv" if own else "linear", (name,), ONE_TAP if own else {}))
        weights[last] = directions[:, :, None, None] if own else directions
    if own:
        op, settings = POOLS[pool]
        steps.append(Step(f"{pool} over positions", op, (last,), settings))
    names = {step.name for step in steps}
    stages = {
        stage: tuple(layer for layer in layers if layer in names)
        for stage, layers in network.stages.items()
    }
    if not any(stages.values()):
        raise UsageError(f"--target {name}: no layer before it is left to prune")
    return replace(
        network,
        steps=tuple(steps),
        weights=weights,
        biases={n: b for n, b in network.biases.items() if n in names},
        fixed={n: each for n, each in network.fixed.items() if n in names},
        stages={stage: layers for stage, layers in stages.items() if layers},
    )
