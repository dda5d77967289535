"""Exact compaction: a pruned network without what it does not need to compute.

A channel none of whose weights reach back to the image is the same for every image: its map is
computed once, from one blank image, and folded into the next layer's bias (into a bias *map* where
zero padding makes it differ at the border).  A channel that nothing alive reads is not computed.
What is left are smaller dense convolutions and products that give the target activation of the
pruned network, up to the order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.kernels.survivors.operation import columns_read, rows_reading
from circuitcore.network.forward import Override, forward
from circuitcore.network.graph import Network, Step, needed_steps
from circuitcore.network.layers.kinds import Reach
from circuitcore.network.layers.table import LAYERS
from circuitcore.network.pieces import Compacted, Piece


def compact(network: Network, override: Override, blank: Mapping[str, Tensor]) -> Compacted:
    """Compact ``network`` under ``override`` (pruned weights are zeros, one target row at the end).

    ``blank``: the values runs will start from, for one image [1, ...], of any content: ``input``,
    or the cached boundary values.  The weights that are left are not gathered yet: the result says
    what running it costs and what it reads.  Cost: one image, and one pass over the weights.
    """
    steps = [s for s in network.steps if s.name not in blank]
    steps = needed_steps(steps, {network.last})
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
    needed = _needed(steps, reads, varies, fixed, network.last)
    if not bool(varies[network.last].any()):
        return Compacted(network, (), fixed[network.last][0])
    index = {n: torch.arange(v.shape[1], device=v.device) for n, v in blank.items()}
    pieces = []
    for step in steps:
        wanted = varies[step.name] & needed[step.name]
        piece = _piece(network, step, override, wanted, index, fixed)
        piece = replace(piece, spatial=tuple(fixed[step.name].shape[2:]))
        index[step.name] = piece.index
        pieces.append(piece)
    return Compacted(network, tuple(pieces), None)


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
    match _reach(step, fixed):
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
            return first[_picked(step, fixed)]
        case "whole":
            some = torch.stack([varies[name].any() for name in step.inputs]).any()
            return some.expand(fixed[step.name].shape[1])
    return first


def _reach(step: Step, fixed: Mapping[str, Tensor]) -> Reach:
    """That of the layer; where channels of one input meet one of another, any of them."""
    reach = LAYERS[step.op].reach
    counts = {fixed[name].shape[1] for name in (*step.inputs, step.name)}
    return "whole" if reach == "pairs" and len(counts) > 1 else reach


def _picked(step: Step, fixed: Mapping[str, Tensor]) -> Tensor:
    """Which channel of the input each channel of the output copies: the layer run on numbers."""
    source = fixed[step.inputs[0]]
    numbers = torch.arange(source.shape[1], device=source.device).view(1, -1, 1, 1)
    return LAYERS[step.op].run(step, [numbers], ()).flatten()


def _needed(
    steps: list[Step],
    reads: Mapping[str, Tensor],
    varies: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    last: str,
) -> dict[str, Tensor]:
    """Which channels of each value something alive reads."""
    needed = {name: torch.zeros_like(v) for name, v in varies.items()}
    needed[last] = torch.ones_like(varies[last])
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
        match _reach(step, fixed):
            case "cat":
                parts = wanted.split([len(varies[name]) for name in step.inputs])
                for name, part in zip(step.inputs, parts, strict=True):
                    needed[name] |= part
            case "flatten":
                channels = fixed[step.inputs[0]].shape[1]
                needed[step.inputs[0]] |= wanted.view(channels, -1).any(1)
            case "pick":
                needed[step.inputs[0]][_picked(step, fixed)[wanted]] = True
            case "whole":
                for name in step.inputs:
                    needed[name] |= wanted.any()
            case "own":
                needed[step.inputs[0]] |= wanted
            case "pairs":
                for name in step.inputs:
                    needed[name] |= wanted
    return needed


def _piece(
    network: Network,
    step: Step,
    override: Override,
    wanted: Tensor,
    index: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
) -> Piece:
    source = index[step.inputs[0]]
    if step.op in ("conv", "linear"):
        return _layer_piece(network, step, override, wanted, source, fixed)
    given = network.fixed.get(step.name, ())
    match _reach(step, fixed):
        case "flatten":
            each = math.prod(fixed[step.inputs[0]].shape[2:])
            spread = source[:, None] * each + torch.arange(each, device=source.device)
            return Piece(step, spread.flatten())
        case "cat":
            offset, parts = 0, []
            for name in step.inputs:
                parts.append(index[name] + offset)
                offset += fixed[name].shape[1]
            return Piece(step, torch.cat(parts))
        case "pick":
            place, picked = _places(source, fixed[step.inputs[0]].shape[1]), _picked(step, fixed)
            kept = (wanted & (place[picked] >= 0)).nonzero()[:, 0]
            return Piece(step, kept, columns=(place[picked[kept]],))
        case "pairs":
            present = torch.zeros_like(wanted)
            for name in step.inputs:
                present[index[name]] = True
            kept = (present & wanted).nonzero()[:, 0]
            return Piece(step, kept, fixed=given, fill=_fill(step, kept, index, fixed))
        case "whole":
            kept = wanted.nonzero()[:, 0]
            return Piece(step, kept, fixed=given, fill=_fill(step, None, index, fixed))
    return Piece(step, source, fixed=tuple(each[source] for each in given))


def _places(source: Tensor, count: int) -> Tensor:
    """Where each of ``count`` channels lies among those that are alive; -1 where it is not."""
    place = torch.full((count,), -1, device=source.device)
    place[source] = torch.arange(len(source), device=source.device)
    return place


def _fill(
    step: Step, kept: Tensor | None, index: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """How each input's channels ``kept``, or all, are made of those alive and of constant maps."""
    fill = []
    for name in step.inputs:
        blank = fixed[name] if kept is None else fixed[name][:, kept]
        target = index[name] if kept is None else _places(kept, fixed[name].shape[1])[index[name]]
        fill.append((blank, target[target >= 0], (target >= 0).nonzero()[:, 0]))
    return tuple(fill)


def _layer_piece(
    network: Network,
    step: Step,
    override: Override,
    wanted: Tensor,
    source: Tensor,
    fixed: Mapping[str, Tensor],
) -> Piece:
    weight = override.weights.get(step.name, network.weights[step.name])
    bias = override.biases.get(step.name, network.biases.get(step.name))
    kept = wanted.nonzero()[:, 0]
    if not len(kept):
        return Piece(step, kept)
    part = None if bias is None else bias[kept]
    blank = fixed[step.inputs[0]].clone()
    blank[:, source] = 0  # what the other channels add is the same for every image
    constant_input = bool(blank.any())
    per_channel = math.prod(fixed[step.name].shape[2:])
    if step.op == "linear":
        cost = len(kept) * len(source)
        if constant_input:
            part = F.linear(blank, weight, bias)[0, kept]
        return Piece(step, kept, source, bias=part, multiply_adds=cost)
    groups, taps = step.settings["groups"], math.prod(weight.shape[2:])
    if groups == 1:
        cost = len(kept) * len(source) * taps * per_channel
        if not constant_input:
            return Piece(step, kept, source, bias=part, multiply_adds=cost)
        constant = F.conv2d(blank, weight, bias, **step.settings)[0, kept]
        if bool((constant == constant[:, :1, :1]).all()):
            same = constant[:, 0, 0].clone()
            return Piece(step, kept, source, bias=same, multiply_adds=cost)
        return Piece(step, kept, source, extra=constant, multiply_adds=cost)
    if weight.shape[1] == 1 and weight.shape[0] == groups:  # depthwise: a channel reads itself
        place = _places(source, groups)
        step = replace(step, settings={**step.settings, "groups": len(kept)})
        cost = len(kept) * taps * per_channel
        return Piece(step, kept, source, bias=part, columns=(place[kept],), multiply_adds=cost)
    # whole groups, with the channels that are missing filled in
    cost = weight.numel() * per_channel
    taken = torch.arange(len(source), device=source.device)
    fill = ((fixed[step.inputs[0]], source, taken),)
    return Piece(step, kept, source, bias=bias, fill=fill, multiply_adds=cost)
