"""Stages: which layers are pruned together, and in which order; and the head that is left for last.

A stage is a name and its layers.  By default they are two, as in Andrade & Konkle (2025): ``fc``,
then ``conv``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.network.graph import Network, Step
from circuitcore.network.layers.table import channelwise
from circuitcore.options.values import Group

# read positions
SPATIAL = {"conv", "filter", "across", "maxpool", "avgpool", "adaptive_avgpool", "adaptive_maxpool",
           "interpolate", "flatten", "mean", "reduced"}  # fmt: skip


def check_head(steps: Sequence[Step]) -> None:
    """Refuse steps that do not end in a Linear, or in a convolution and what keeps channels apart.

    The last layer's rows are then the target units, and row ``c`` alone reaches unit ``c``.
    Whether what follows a convolution leaves one value a channel depends on the size of the images:
    see `check_units`.
    """
    layers = [step for step in steps if step.op in ("conv", "linear")]
    end = steps[-1].name if steps else "its input"
    wanted = "its last layer must be a Linear, or a convolution and a pooling of its channels"
    if not layers:
        raise InputError(f"the model ends in {end!r}: {wanted}")
    last, behind = layers[-1], steps[steps.index(layers[-1]) + 1 :]
    for step, before in zip(behind, [last, *behind], strict=False):
        if last.op == "linear" or not channelwise(step.op) or step.inputs != (before.name,):
            raise InputError(f"the model ends in {end!r}, behind {last.name!r}: {wanted}")
    if last.settings.get("groups", 1) != 1:
        raise InputError(f"layer {last.name!r}: the last layer is a convolution in groups")


def check_units(network: Network, shape: Sequence[int]) -> None:
    """Refuse a result of ``shape``, of one image, that is not one value an output unit."""
    if tuple(shape) != (network.outputs,):
        raise InputError(
            f"the network's {network.result!r} gives {tuple(shape)} values of an image for "
            f"{network.outputs} channels of {network.last!r}: one value a channel is needed"
        )


def default_stages(
    steps: Sequence[Step], kernels: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """``fc``, then ``conv``, the rest; a stage without layers is not there.

    ``fc``: the Linear layers behind which nothing convolves, pools or flattens: those of a
    classifier, not those of a block (squeeze and excitation, ConvNeXt's on [n, h, w, c]).  Where
    the last layer is a convolution, the 1 x 1 convolutions of the chain that ends in the result,
    back to the last spatial convolution or to where values come together.  ``kernels``: names of
    the convolutions of one tap and no groups.
    """
    layers = [step.name for step in steps if step.op in ("conv", "linear")]
    ops = {step.name: step.op for step in steps}
    head = _chain(steps, kernels) if layers and ops[layers[-1]] == "conv" else _classifier(steps)
    found = {"fc": [n for n in layers if n in head], "conv": [n for n in layers if n not in head]}
    return {name: tuple(each) for name, each in found.items() if each}


def staged(network: Network, groups: Sequence[Group], skip: Sequence[str]) -> Network:
    """The network with stages as ``--stages`` and ``--skip`` ask for them.

    ``groups``: none for the default ones.  Raises UsageError naming the layer that is in no stage
    or in several, and the name that no layer has.
    """
    layers = network.weighted()
    whole = {name for each in skip for name in _named(each, layers, "--skip")}
    found: dict[str, tuple[str, ...]] = {}
    if not groups:
        found = {stage: _left(names, whole) for stage, names in network.stages.items()}
    for group in groups:
        names = {name for each in group.layers for name in _named(each, layers, "--stages")}
        found[group.name] = _left([name for name in layers if name in names], whole)
        if not found[group.name]:
            raise UsageError(f"--stages: {group.name} has no layer left, all are skipped")
    for name in layers:
        inside = [stage for stage, names in found.items() if name in names]
        if name not in whole and len(inside) != 1:
            where = f"is in {' and in '.join(inside)}" if inside else "is in no stage"
            raise UsageError(
                f"--stages: layer {name!r} {where}: each belongs to one (or --skip it)"
            )
    found = {stage: names for stage, names in found.items() if names}
    if not found:
        raise UsageError("--skip: no layer is left to prune")
    return replace(network, stages=found)


def _left(names: Sequence[str], whole: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in whole)


def _named(pattern: str, layers: Sequence[str], flag: str) -> list[str]:
    """The layers of a name, or of a glob."""
    found = [name for name in layers if fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(f"{flag}: no layer {pattern!r}{nearest(pattern, layers)}")
    return found


def _classifier(steps: Sequence[Step]) -> set[str]:
    """Linear layers that no step which reads positions lies behind."""
    before: set[str] = set()  # a spatial step reads what depends on these
    found = set()
    for step in reversed(steps):
        if step.name in before or step.op in SPATIAL:
            before.update(step.inputs)
        if step.op == "linear" and step.name not in before:
            found.add(step.name)
    return found


def _chain(steps: Sequence[Step], kernels: Collection[str]) -> set[str]:
    """1 x 1 convolutions of the chain that ends in the result."""
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    step = steps[-1]
    while True:
        if step.op == "conv":
            if step.name not in kernels:
                return found
            found.add(step.name)
        elif not channelwise(step.op):
            return found
        (value,) = step.inputs
        if value not in by_name or sum(value in each.inputs for each in steps) > 1:
            return found
        step = by_name[value]
