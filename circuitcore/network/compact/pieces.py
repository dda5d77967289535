"""A compacted network, run: smaller dense convolutions and products on what is alive.

`network.compact.compaction` decides what that is; here the weights are gathered and images go
through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.kernels.spans import span, work
from circuitcore.network.forward import Override, Tally
from circuitcore.network.graph import Network, Step
from circuitcore.network.layers.table import LAYERS


@dataclass(frozen=True)
class Piece:
    """One step on the channels that are alive.

    ``index`` int64: channels of the full output that this piece gives; ``source`` int64: channels
    of the full input a layer reads; ``weight`` of a layer on them, None until gathered; ``bias``;
    ``extra`` [out, H, W]: a bias that differs from place to place; ``fixed``: what no mask touches,
    of these channels; ``columns``: which channels of the input those of a grouped convolution or of
    a copy are; ``fill``: for each input of a step that needs some whole, (constant maps, which of
    them its channels stand in for, which of its channels do); ``spatial``: the output's axes behind
    channels.
    """

    step: Step
    index: Tensor
    source: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    extra: Tensor | None = None
    fixed: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()
    fill: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
    multiply_adds: int = 0
    spatial: tuple[int, ...] = ()

    @property
    def folds(self) -> bool:
        """Whether a batch norm behind it can become part of it."""
        return self.step.op == "conv" and self.weight is not None and not self.fill

    def folded(self, norm: Piece) -> Piece:
        """This convolution and the batch norm that reads it, as one piece in the norm's place."""
        assert self.weight is not None
        before = self.bias if self.extra is None else self.extra
        weight, moved = fold_norm(self.weight, before, norm.fixed, norm.step.settings["eps"])
        step = replace(self.step, name=norm.step.name)
        if self.extra is None:
            return replace(self, step=step, weight=weight, bias=moved)
        return replace(self, step=step, weight=weight, extra=moved)


@dataclass(frozen=True)
class Compacted:
    """A compacted network: ``pieces`` in order; ``constant`` where no image changes the result."""

    network: Network
    pieces: tuple[Piece, ...]
    constant: Tensor | None

    @property
    def multiply_adds(self) -> int:
        """Of one image, as planned."""
        return sum(piece.multiply_adds for piece in self.pieces)

    def gathered(self, override: Override) -> Compacted:
        """With the surviving weights of ``override``, which it was compacted under, ready to run.

        A batch norm that alone reads a convolution is folded into it.  Cost: one copy of the
        weights that are left.
        """
        weights = {**self.network.weights, **override.weights}
        pieces: list[Piece] = []
        readers = Counter(name for piece in self.pieces for name in piece.step.inputs)
        for piece in self.pieces:
            if piece.source is not None:
                piece = replace(piece, weight=_surviving(weights[piece.step.name], piece))
            before = pieces[-1] if pieces else piece
            alone = readers[before.step.name] == 1
            if (
                piece.step.op == "batchnorm"
                and alone
                and piece.step.inputs == (before.step.name,)
                and before.folds
            ):
                pieces[-1] = before.folded(piece)
                continue
            pieces.append(piece)
        return replace(self, pieces=tuple(pieces))

    def run(self, values: Mapping[str, Tensor], tally: Tally | None = None) -> Tensor:
        """Target activations [N] from the same values the network was compacted for.

        ``tally`` receives the multiply-adds executed, taken from the operands.
        """
        count = next(iter(values.values())).shape[0]
        if self.constant is not None:
            return self.constant.expand(count)
        return run_pieces(self.pieces, values, tally)


def run_pieces(
    pieces: Sequence[Piece], values: Mapping[str, Tensor], tally: Tally | None = None
) -> Tensor:
    """What the last of some pieces gives, [N], each run on what the ones before it gave."""
    alive, tally = dict(values), tally or Tally()
    last_use = {n: k for k, piece in enumerate(pieces) for n in piece.step.inputs}
    readers = Counter(name for piece in pieces for name in piece.step.inputs)
    fresh = {p.step.name for p in pieces if p.step.op in ("conv", "linear", "batchnorm")}
    for k, piece in enumerate(pieces):
        inputs = [alive[name] for name in piece.step.inputs]
        name = piece.step.inputs[0]
        with span("layer", piece.step.name):
            before = tally.multiply_adds
            if piece.step.op == "relu" and readers[name] == 1 and name in fresh:
                out = inputs[0].relu_()
            else:
                out = _run_piece(piece, inputs, tally)
            work(tally.multiply_adds - before, *inputs, piece.weight, out)
        alive[piece.step.name] = out
        for name in set(piece.step.inputs):
            if last_use[name] == k:
                del alive[name]
    return alive[pieces[-1].step.name][:, 0]


def _surviving(weight: Tensor, piece: Piece) -> Tensor:
    assert piece.source is not None
    if piece.step.op == "linear":
        rows = weight if len(piece.index) == len(weight) else weight[piece.index]
        return rows if len(piece.source) == weight.shape[1] else rows[:, piece.source]
    if piece.step.settings["groups"] == 1 and not piece.columns:  # of a depthwise one 1 may be left
        return _channels_last(weight[piece.index][:, piece.source])
    return _channels_last(weight if piece.fill else weight[piece.index])


def _run_piece(piece: Piece, inputs: list[Tensor], tally: Tally) -> Tensor:
    step = piece.step
    if not len(piece.index):
        return inputs[0].new_empty((inputs[0].shape[0], 0, *piece.spatial))
    if step.op == "linear":
        assert piece.weight is not None
        tally.multiply_adds += inputs[0].shape[0] * piece.weight.numel()
        return F.linear(inputs[0], piece.weight, piece.bias)
    if step.op == "conv":
        x = inputs[0]
        assert piece.weight is not None
        if piece.fill:  # grouped
            out = F.conv2d(_filled(x, *piece.fill[0]), piece.weight, piece.bias, **step.settings)
            tally.multiply_adds += out.numel() * piece.weight[0].numel()
            return out[:, piece.index]
        if piece.columns:  # depthwise
            x = x[:, piece.columns[0]]
        out = F.conv2d(x, piece.weight, piece.bias, **step.settings)
        tally.multiply_adds += out.numel() * piece.weight[0].numel()
        return out if piece.extra is None else out.add_(piece.extra)
    if piece.columns:
        return inputs[0][:, piece.columns[0]]
    if piece.fill:
        inputs = [_filled(x, *each) for x, each in zip(inputs, piece.fill, strict=True)]
    out = LAYERS[step.op].run(step, inputs, piece.fixed)
    return out if out.shape[1] == len(piece.index) else out[:, piece.index]


def _filled(x: Tensor, blank: Tensor, places: Tensor, taken: Tensor) -> Tensor:
    """The channels ``taken`` of ``x`` in their ``places`` among constant maps."""
    if len(places) == blank.shape[1]:
        return x if len(taken) == x.shape[1] else x[:, taken]
    whole = blank.expand(x.shape[0], *blank.shape[1:])
    if not len(places):
        return whole
    whole = whole.clone()
    whole[:, places] = x[:, taken]
    return whole


def _channels_last(weight: Tensor) -> Tensor:
    """A copy whose strides say channels-last even for one input channel: so will its outputs."""
    out = torch.empty(
        weight.shape,
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )
    return out.copy_(weight)


def fold_norm(
    weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what convolution, then batch norm, do.

    ``weight`` [out, in / groups, kh, kw]; ``bias`` [out], or a map [out, H, W] that is added to the
    convolution's result, or None; ``norm``: mean, var, scale, shift, each [out].  Exact but for the
    order of rounding: the factors are taken in float64 and rounded once.  A pruned weight stays 0,
    and a row of them leaves the bias alone: (bias - mean) · factor + shift.
    """
    mean, var, scale, shift = (each.double() for each in norm)
    factor = scale * (var + eps).rsqrt()
    before = torch.zeros_like(mean) if bias is None else bias.double()
    by_channel = (-1, *(1 for _ in before.shape[1:]))
    moved = (before - mean.view(by_channel)) * factor.view(by_channel) + shift.view(by_channel)
    rows = weight.double() * factor.view(-1, 1, 1, 1)
    return torch.empty_like(weight).copy_(rows), moved.to(weight.dtype)
