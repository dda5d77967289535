"""What passes through each unit of a circuit: scores of its live weights, added up.

The score of a weight is what the method ranks it by (Weight scoring; in its absolute value, should
it be signed).  The *flow* between two units is the sum of the scores of the live weights that lead
from one to the other; the flow through a unit is the sum over the live weights that read it, of one
that no scored layer reads, as the target, over those it is computed from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcore.analysis.anatomy.live import Live


@dataclass(frozen=True)
class Flow:
    """``between``: of each layer, by the layer it reads, float64 [out, channels read there];
    ``through``: of each layer's units, float64 [out].
    """

    between: Mapping[str, Mapping[str, Tensor]]
    through: Mapping[str, Tensor]


def flow(circuit: Live, scores: Mapping[str, Tensor]) -> Flow:
    """The flow of a circuit under its weights' ``scores``, by layer, shaped like the units that
    are scored: weights, kernels or filters, whose score is each of their weights'.
    """
    between: dict[str, dict[str, Tensor]] = {}
    into: dict[str, Tensor] = {}
    for layer, live in circuit.live.items():
        strength = _strength(live, scores[layer], circuit.groups[layer])
        into[layer], between[layer] = strength.sum(1), {}
        for source, index in circuit.origin[layer]:
            own = between[layer].get(source)
            found = _gathered(strength, index, _channels(circuit, source, index))
            between[layer][source] = found if own is None else own + found
    through: dict[str, Tensor] = {}
    for sources in between.values():
        for source, found in sources.items():
            if source in into:
                through[source] = through.get(source, 0) + found.sum(0)
    return Flow(between, {layer: through.get(layer, own) for layer, own in into.items()})


def _channels(circuit: Live, source: str, index: Tensor) -> int:
    own = circuit.live.get(source)
    return len(own) if own is not None else int(index.max()) + 1


def _strength(live: Tensor, scores: Tensor, groups: int) -> Tensor:
    """Summed scores of live weights, float64 [out, in], however the layer is grouped."""
    shaped = scores.abs().view(*scores.shape, *[1] * (live.dim() - scores.dim()))
    values = torch.where(live, shaped.expand(live.shape).double(), 0.0)
    found = values.flatten(2).sum(2) if values.dim() > 2 else values
    if groups == 1:
        return found
    rows, columns = found.shape
    whole = torch.zeros(rows, groups * columns, dtype=torch.float64)
    each = rows // groups
    for group in range(groups):
        part = slice(group * each, (group + 1) * each)
        whole[part, group * columns : (group + 1) * columns] = found[part]
    return whole


def _gathered(strength: Tensor, index: Tensor, count: int) -> Tensor:
    """[out, in] added up over inputs of the same channel ``index`` [in]: [out, count]."""
    known = index >= 0
    whole = torch.zeros(len(strength), count, dtype=torch.float64)
    return whole.index_add_(1, index[known], strength[:, known])
