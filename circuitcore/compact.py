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
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.forward import Override, Tally, forward
from circuitcore.network import Network, Step, apply_step


@dataclass(frozen=True)
class Piece:
    """One step on the channels that are alive.

    ``index`` int64: channels of the full output that this piece gives; ``weight``, ``bias`` of a
    layer on them; ``extra`` [out, H, W]: a bias that differs from place to place; ``fill``: for
    each input of an addition, (blank map, places in ``index`` it fills, which of its channels
    do); ``spatial``: height and width of the output.
    """

    step: Step
    index: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    extra: Tensor | None = None
    norm: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()
    fill: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
    multiply_adds: int = 0
    spatial: tuple[int, ...] = ()


@dataclass(frozen=True)
class Compacted:
    """A compacted network: ``pieces`` in order; ``constant`` where no image changes the result."""

    network: Network
    pieces: tuple[Piece, ...]
    constant: Tensor | None
    multiply_adds: int = field(default=0)  # of one image

    def run(self, values: Mapping[str, Tensor], tally: Tally | None = None) -> Tensor:
        """Target activations [N] from the same values the network was compacted for."""
        count = next(iter(values.values())).shape[0]
        if self.constant is not None:
            return self.constant.expand(count)
        if tally is not None:
            tally.multiply_adds += self.multiply_adds * count
        alive = dict(values)
        last_use = {n: k for k, piece in enumerate(self.pieces) for n in piece.step.inputs}
        for k, piece in enumerate(self.pieces):
            inputs = [alive[name] for name in piece.step.inputs]
            alive[piece.step.name] = _run_piece(self.network, piece, inputs)
            for name in set(piece.step.inputs):
                if last_use[name] == k:
                    del alive[name]
        return alive[self.pieces[-1].step.name][:, 0]


def compact(network: Network, override: Override, blank: Mapping[str, Tensor]) -> Compacted:
    """Compact ``network`` under ``override`` (pruned weights are zeros, one target row at the end).

    ``blank``: the values runs will start from, for one image [1, ...], of any content: ``input``,
    or the cached boundary values.  Cost: one image, and one pass over the weights.
    """
    steps = [s for s in network.steps if s.name not in blank]
    steps = _reachable(steps, network.last)
    names = [s.name for s in steps]
    fixed = dict(zip(names, forward(network, blank, names, override=override), strict=True))
    fixed |= blank
    weights = {s.name: override.weights.get(s.name, network.weights.get(s.name)) for s in steps}
    reads = {n: w.flatten(2).ne(0).any(2) if w.dim() == 4 else w.ne(0)
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
    return Compacted(network, tuple(pieces), None, sum(p.multiply_adds for p in pieces))


def _reachable(steps: list[Step], last: str) -> list[Step]:
    wanted, kept = {last}, []
    for step in reversed(steps):
        if step.name in wanted:
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]


def _groups(step: Step, matrix: Tensor) -> Tensor:
    """A conv's [out, in / groups] read pattern as [groups, out / groups, in / groups]."""
    return matrix.unflatten(0, (step.settings.get("groups", 1), -1))


def _varies(
    step: Step, reads: Mapping[str, Tensor], varies: Mapping[str, Tensor], fixed: Mapping
) -> Tensor:
    """Which output channels depend on the image."""
    first = varies[step.inputs[0]]
    if step.op in ("conv", "linear"):
        pattern = _groups(step, reads[step.name])
        return (pattern & first.view(pattern.shape[0], 1, -1)).any(2).flatten()
    if step.op == "add":
        return first | varies[step.inputs[1]]
    if step.op == "cat":
        return torch.cat([varies[name] for name in step.inputs])
    if step.op == "flatten":
        return first.repeat_interleave(math.prod(fixed[step.inputs[0]].shape[2:]))
    return first


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
            pattern = _groups(step, reads[step.name])
            read = (pattern & wanted.view(pattern.shape[0], -1, 1)).any(1).flatten()
            needed[step.inputs[0]] |= read
        elif step.op == "cat":
            parts = wanted.split([len(varies[name]) for name in step.inputs])
            for name, part in zip(step.inputs, parts, strict=True):
                needed[name] |= part
        elif step.op == "flatten":
            channels = fixed[step.inputs[0]].shape[1]
            needed[step.inputs[0]] |= wanted.view(channels, -1).any(1)
        else:
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
    if step.op == "batchnorm":
        norm = tuple(each[source] for each in network.norms[step.name])
        return Piece(step, source, norm=norm)
    if step.op == "flatten":
        each = math.prod(fixed[step.inputs[0]].shape[2:])
        spread = source[:, None] * each + torch.arange(each, device=source.device)
        return Piece(step, spread.flatten())
    if step.op == "cat":
        offset, parts = 0, []
        for name in step.inputs:
            parts.append(index[name] + offset)
            offset += fixed[name].shape[1]
        return Piece(step, torch.cat(parts))
    if step.op == "add":
        present = torch.zeros_like(wanted)
        for name in step.inputs:
            present[index[name]] = True
        kept = (present & wanted).nonzero()[:, 0]
        place = torch.full_like(wanted, -1, dtype=torch.int64)
        place[kept] = torch.arange(len(kept), device=kept.device)
        fill = []
        for name in step.inputs:
            target = place[index[name]]
            fill.append((fixed[name][:, kept], target[target >= 0], (target >= 0).nonzero()[:, 0]))
        return Piece(step, kept, fill=tuple(fill))
    return Piece(step, source)


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
    per_channel = math.prod(fixed[step.name].shape[2:])
    if step.op == "linear":
        rows = weight[kept]
        constant = F.linear(blank, rows, part)[0]
        taken = rows if len(source) == weight.shape[1] else rows[:, source]
        cost = len(kept) * len(source)
        return Piece(step, kept, weight=taken, bias=constant, multiply_adds=cost)
    groups, taps = step.settings["groups"], math.prod(weight.shape[2:])
    if groups == 1:
        taken = _channels_last(weight[kept][:, source])
        cost = len(kept) * len(source) * taps * per_channel
        columns: tuple[Tensor, ...] = ()
        settings = step.settings
        varying = weight[kept]
    elif weight.shape[1] == 1 and weight.shape[0] == groups:  # depthwise: a channel reads itself
        place = torch.full((groups,), -1, device=kept.device)
        place[source] = torch.arange(len(source), device=kept.device)
        taken, columns = _channels_last(weight[kept]), (place[kept],)
        settings = {**step.settings, "groups": len(kept)}
        cost = len(kept) * taps * per_channel
        return Piece(replace(step, settings=settings), kept, weight=taken, bias=part,
                     columns=columns, multiply_adds=cost)  # fmt: skip
    else:  # whole groups, with the channels that are missing filled in
        taken, columns = _channels_last(weight), (source, kept)
        cost = weight.numel() * per_channel
        fill = ((fixed[step.inputs[0]], source, source),)
        return Piece(step, kept, weight=taken, bias=bias, columns=columns, fill=fill,
                     multiply_adds=cost)  # fmt: skip
    if not bool(blank.any()):
        return Piece(step, kept, weight=taken, bias=part, multiply_adds=cost)
    constant = F.conv2d(blank, varying, part, **settings)[0]
    if bool((constant == constant[:, :1, :1]).all()):
        return Piece(step, kept, weight=taken, bias=constant[:, 0, 0].clone(), multiply_adds=cost)
    return Piece(step, kept, weight=taken, extra=constant, multiply_adds=cost)


def _channels_last(weight: Tensor) -> Tensor:
    """A copy whose strides say channels-last even for one input channel: so will its outputs."""
    out = torch.empty(
        weight.shape,
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )
    return out.copy_(weight)


def _run_piece(network: Network, piece: Piece, inputs: list[Tensor]) -> Tensor:
    step = piece.step
    if not len(piece.index):
        return inputs[0].new_empty((inputs[0].shape[0], 0, *piece.spatial))
    if step.op == "linear":
        return F.linear(inputs[0], piece.weight, piece.bias)  # type: ignore[arg-type]
    if step.op == "conv":
        x = inputs[0]
        if piece.fill:  # grouped
            blank, places, _ = piece.fill[0]
            whole = blank.expand(x.shape[0], *blank.shape[1:]).clone()
            whole[:, places] = x
            out = F.conv2d(whole, piece.weight, piece.bias, **step.settings)  # type: ignore[arg-type]
            return out[:, piece.index]
        if piece.columns:  # depthwise
            x = x[:, piece.columns[0]]
        out = F.conv2d(x, piece.weight, piece.bias, **step.settings)  # type: ignore[arg-type]
        return out if piece.extra is None else out.add_(piece.extra)
    if step.op == "batchnorm":
        mean, var, scale, shift = piece.norm
        eps = step.settings["eps"]
        return F.batch_norm(inputs[0], mean, var, scale, shift, False, 0.0, eps)
    if step.op == "relu":
        return torch.relu(inputs[0])
    if step.op == "add":
        total: Tensor | None = None
        for x, (blank, target, taken) in zip(inputs, piece.fill, strict=True):
            whole = blank.expand(x.shape[0], *blank.shape[1:]).clone()
            whole[:, target] = x[:, taken]
            total = whole if total is None else total.add_(whole)
        assert total is not None
        return total
    return apply_step(network, step, inputs)
