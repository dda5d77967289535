"""An ensemble of criteria: the mean of a weight's normalised ranks by each of them.

Within a stage every member ranks all units jointly, by its own scores after the stage's
normalisation, from 0 (lowest) to 1; equal scores share the mean of their ranks.  The mean over the
members is what is ranked again.  Ranks are whole numbers (twice a mean of ranks is one), so that
sums are exact in stages of any size, and so is their order: levels are selected by the sums' own
order, written as float32 numbers that follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitcore.kernels.levels.layer import LayerScores, normalised, raw_scores
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.scoring.scores import Contribution, UnitScores, layer_scores, overflow

RANKED_BYTES = 80  # a unit of the stage at once, as measured
SMALLEST = 0x00800000  # bits of the smallest normal float32: the next ones follow it in order


@dataclass(frozen=True)
class Ensemble:
    """A stage's units by layer: ``scores`` to select levels by (of their order alone), and
    ``means``, float32 [units], the mean normalised ranks that this is the order of.

    ``zero``: weights whose score is exactly 0 by every member.
    """

    scores: list[UnitScores]
    means: list[Tensor]
    zero: int


def ensemble(
    network: Network,
    names: Sequence[str],
    found: Mapping[str, Contribution],
    unit: int,
    options: Options,
) -> Ensemble:
    """Ranks of the layers ``names``, one stage, by all of `Options.members`.

    Cost: a sort of all units a member, one of the sums, and `RANKED_BYTES` a unit at once (8
    million units by three members: 13 s on a busy CPU core).  Raises InputError naming the layer
    where a score is NaN or infinite.
    """
    total: Tensor | None = None
    zero: Tensor | None = None
    units: list[UnitScores] = []
    for member in options.members():
        values, nothing, units = _scored(network, names, found, unit, options.member(member))
        ranks = doubled_ranks(values)
        del values
        total = ranks if total is None else total.add_(ranks)
        zero = nothing if zero is None else zero.logical_and_(nothing)
        del ranks, nothing
    if total is None or zero is None:
        return Ensemble([], [], 0)
    most = 2 * max(len(total) - 1, 1) * len(options.members())
    sizes = [math.prod(each.unit_shape) for each in units]
    means = [part.double().div_(most).float() for part in total.split(sizes)]
    ordered = in_order(total)
    del total
    weights = sum(
        int(part.count_nonzero()) * each.per_unit
        for part, each in zip(zero.split(sizes), units, strict=True)
    )
    scores = [
        replace(each, layer=LayerScores(each.layer.weight, values=part))
        for each, part in zip(units, ordered.split(sizes), strict=True)
    ]
    return Ensemble(scores, means, weights)


def _scored(
    network: Network,
    names: Sequence[str],
    found: Mapping[str, Contribution],
    unit: int,
    options: Options,
) -> tuple[Tensor, Tensor, list[UnitScores]]:
    """One member's normalised scores, flat, which are exactly 0 before that, and their units."""
    values, nothing, units = [], [], []
    for name in names:
        contribution = found[name].members.get(options.criterion, found[name])
        each = layer_scores(network, name, contribution, unit, options)
        raw = raw_scores(each.layer)
        if not bool(torch.isfinite(raw).all()):
            raise overflow(name)
        values.append(normalised(raw, each.layer))
        nothing.append(raw == 0)
        units.append(each)
    return torch.cat(values), torch.cat(nothing), units


def doubled_ranks(values: Tensor) -> Tensor:
    """Twice the rank of each of ``values`` [n], from 0, int64; equal ones share the mean rank."""
    ordered, order = values.sort()
    group, first = _groups(ordered)
    del ordered
    twice = torch.cat([first[1:], first.new_tensor([len(values)])]).add_(first).sub_(1)
    del first
    return group.scatter_(0, order, twice[group])


def in_order(total: Tensor) -> Tensor:
    """float32 numbers [n] in the order of the whole numbers ``total``, equal where those are.

    Normal numbers, from the smallest on: no device takes them for 0, and there are 2^31 of them.
    """
    ordered, order = total.sort()
    group = _groups(ordered)[0].add_(SMALLEST).to(torch.int32)
    del ordered
    return torch.empty_like(group).scatter_(0, order, group).view(torch.float32)


def _groups(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Of sorted numbers [n]: which distinct one each is, from 0, and where each begins, int64."""
    begins = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=begins[1:])
    return begins.cumsum(0).sub_(1), begins.nonzero().flatten()
