"""Which channels lie on a path from the image to the target, and where each of them comes from.

A channel varies where a weight other than 0 leads to it from what varies, the image first; it is
needed where something needed that varies reads it.  What does not vary is the same for every image,
what is not needed has no say: `compaction` leaves both out, and `analysis.anatomy` marks kept
weights between others as dead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcore.kernels.survivors.operation import columns_read, rows_reading
from circuitcore.network.forward import Override, forward
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers.kinds import Reach
from circuitcore.network.layers.table import LAYERS


@dataclass(frozen=True)
class Paths:
    """A network under an override, and what is alive in it.

    ``steps``: those that lead to the result; ``fixed``: their values for one blank image;
    ``varies`` and ``needed``: bool [channels] by value, those given among them.
    """

    network: Network
    steps: list[Step]
    fixed: Mapping[str, Tensor]
    varies: Mapping[str, Tensor]
    needed: Mapping[str, Tensor]


def paths(network: Network, override: Override, blank: Mapping[str, Tensor]) -> Paths:
    """What is alive of ``network`` under ``override``, whose pruned weights are zeros.

    ``blank``: as `compaction.compact` takes it.  Cost: one image, and one pass over the weights.
    """
    network, result = override.normed(network), network.result
    steps = [s for s in network.steps if s.name not in blank]
    steps = needed_steps(steps, {result})
    names = [s.name for s in steps]
    fixed = dict(zip(names, forward(network, blank, names, override=override), strict=True))
    fixed |= blank
    weights = {s.name: override.weights.get(s.name, network.weights.get(s.name)) for s in steps}
    reads = {n: w.flatten(2).ne(0).any(2) if w.dim() == 4 else w
             for n, w in weights.items() if w is not None}  # fmt: skip
    varies = {n: torch.ones(v.shape[1], dtype=torch.bool, device=v.device)
              for n, v in blank.items()}  # fmt: skip
    for step in steps:
        varies[step.name] = _varies(step, reads, varies, fixed)
    needed = _needed(steps, reads, varies, fixed, result)
    return Paths(network, steps, fixed, varies, needed)


def _groups(step: Step, matrix: Tensor) -> Tensor:
    """A conv's [out, in / groups] read pattern as [groups, out / groups, in / groups]."""
    return matrix.unflatten(0, (step.settings.get("groups", 1), -1))


def _varies(
    step: Step, reads: Mapping[str, Tensor], varies: Mapping[str, Tensor], fixed: Mapping
) -> Tensor:
    """Which output channels depend on the image."""
    first = varies[step.inputs[0]]
    if step.op in ("conv", "linear"):
        if step.settings.get("groups", 1) == 1:
            return rows_reading(reads[step.name], first)
        pattern = _groups(step, reads[step.name])
        return (pattern & first.view(pattern.shape[0], 1, -1)).any(2).flatten()
    match reach_of(step, fixed):
        case "pairs":
            found = first.clone()
            for name in step.inputs[1:]:
                found |= varies[name]
            if LAYERS[step.op].absorbs:
                for name in step.inputs:
                    found &= varies[name] | fixed[name][0].flatten(1).ne(0).any(1)
            return found
        case "cat":
            return torch.cat([varies[name] for name in step.inputs])
        case "flatten":
            return first.repeat_interleave(math.prod(fixed[step.inputs[0]].shape[2:]))
        case "pick":
            return first[picked(step, fixed)]
        case "whole":
            some = torch.stack([varies[name].any() for name in step.inputs]).any()
            return some.expand(fixed[step.name].shape[1])
    return first


def reach_of(step: Step, fixed: Mapping[str, Tensor]) -> Reach:
    """That of the layer; where channels of one input meet one of another, any of them."""
    reach = LAYERS[step.op].reach
    counts = {fixed[name].shape[1] for name in (*step.inputs, step.name)}
    return "whole" if reach == "pairs" and len(counts) > 1 else reach


def picked(step: Step, fixed: Mapping[str, Tensor]) -> Tensor:
    """Which channel of the input each channel of the output copies: the layer run on numbers."""
    source = fixed[step.inputs[0]]
    numbers = torch.arange(source.shape[1], device=source.device).view(1, -1, 1, 1)
    return LAYERS[step.op].run(step, [numbers], ()).flatten()


def _needed(
    steps: list[Step],
    reads: Mapping[str, Tensor],
    varies: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    result: str,
) -> dict[str, Tensor]:
    """Which channels of each value something alive reads."""
    needed = {name: torch.zeros_like(v) for name, v in varies.items()}
    needed[result] = torch.ones_like(varies[result])
    for step in reversed(steps):
        wanted = needed[step.name] & varies[step.name]
        if step.op in ("conv", "linear"):
            if step.settings.get("groups", 1) == 1:
                needed[step.inputs[0]] |= columns_read(reads[step.name], wanted)
                continue
            pattern = _groups(step, reads[step.name])
            read = (pattern & wanted.view(pattern.shape[0], -1, 1)).any(1).flatten()
            needed[step.inputs[0]] |= read
            continue
        match reach_of(step, fixed):
            case "cat":
                parts = wanted.split([len(varies[name]) for name in step.inputs])
                for name, part in zip(step.inputs, parts, strict=True):
                    needed[name] |= part
            case "flatten":
                channels = fixed[step.inputs[0]].shape[1]
                needed[step.inputs[0]] |= wanted.view(channels, -1).any(1)
            case "pick":
                needed[step.inputs[0]][picked(step, fixed)[wanted]] = True
            case "whole":
                for name in step.inputs:
                    needed[name] |= wanted.any()
            case "own":
                needed[step.inputs[0]] |= wanted
            case "pairs":
                for name in step.inputs:
                    needed[name] |= wanted
    return needed


Origin = tuple[str, Tensor]
"""A layer (or given value), and for each channel of a value which of its channels that is, or -1"""


def origins(found: Paths) -> dict[str, list[Origin]]:
    """Of each value, the layers with weights whose output channels its channels are.

    A value has several where maps were added or laid one behind the other.  A step that mixes
    channels (a norm over them) and keeps their number is taken for one that keeps them apart.
    """
    given = [name for name in found.varies if name not in {step.name for step in found.steps}]
    of: dict[str, list[Origin]] = {n: [(n, torch.arange(len(found.varies[n])))] for n in given}
    for step in found.steps:
        of[step.name] = _origin(step, of, found.fixed)
    return of


def _origin(
    step: Step, of: Mapping[str, list[Origin]], fixed: Mapping[str, Tensor]
) -> list[Origin]:
    first, count = of[step.inputs[0]], fixed[step.name].shape[1]
    if step.op in ("conv", "linear"):
        return [(step.name, torch.arange(count))]
    match reach_of(step, fixed):
        case "pairs":
            return [origin for name in dict.fromkeys(step.inputs) for origin in of[name]]
        case "cat":
            merged, offset = [], 0
            for name in step.inputs:
                size = fixed[name].shape[1]
                for layer, index in of[name]:
                    whole = torch.full((count,), -1)
                    whole[offset : offset + size] = index
                    merged.append((layer, whole))
                offset += size
            return merged
        case "flatten":
            each = math.prod(fixed[step.inputs[0]].shape[2:])
            return [(layer, index.repeat_interleave(each)) for layer, index in first]
        case "pick":
            chosen = picked(step, fixed).cpu()
            return [(layer, index[chosen]) for layer, index in first]
    return [(layer, index) for layer, index in first if len(index) == count]
