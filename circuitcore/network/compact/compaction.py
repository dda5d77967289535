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

from circuitcore.network.compact.paths import paths, picked, reach_of
from circuitcore.network.compact.pieces import Compacted, Piece
from circuitcore.network.forward import Override
from circuitcore.network.graph import Network, Step


def compact(network: Network, override: Override, blank: Mapping[str, Tensor]) -> Compacted:
    """Compact ``network`` under ``override`` (pruned weights are zeros, one target row at the end).

    ``blank``: the values runs will start from, for one image [1, ...], of any content: ``input``,
    or the cached boundary values.  The weights that are left are not gathered yet: the result says
    what running it costs and what it reads.  Cost: one image, and one pass over the weights.
    """
    found = paths(network, override, blank)
    network, steps, fixed, result = found.network, found.steps, found.fixed, network.result
    varies, needed = found.varies, found.needed
    if not bool(varies[result].any()):
        return Compacted(network, (), fixed[result][0])
    index = {n: torch.arange(v.shape[1], device=v.device) for n, v in blank.items()}
    pieces = []
    for step in steps:
        wanted = varies[step.name] & needed[step.name]
        piece = _piece(network, step, override, wanted, index, fixed)
        piece = replace(piece, spatial=tuple(fixed[step.name].shape[2:]))
        index[step.name] = piece.index
        pieces.append(piece)
    return Compacted(network, tuple(pieces), None)


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
    match reach_of(step, fixed):
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
            place, chosen = _places(source, fixed[step.inputs[0]].shape[1]), picked(step, fixed)
            kept = (wanted & (place[chosen] >= 0)).nonzero()[:, 0]
            return Piece(step, kept, columns=(place[chosen[kept]],))
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
