"""The live part of a circuit: kept weights on a path from the image to the target.

A circuit's *nominal* weights are those that it keeps.  One of them is *live* if its own value is
not 0, if what it reads varies with the image, and if kept weights lead on from its unit to the
target (`network.compact.paths`, the rules by which compaction leaves channels out).  The others are
dead: one into a unit that nothing reads has no say; one that reads a unit without live weights
reads what is the same for every image, relu(bias), and is part of its own unit's bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcore.engine.passes import circuit_override
from circuitcore.network.compact.paths import Origin, Paths, origins, paths
from circuitcore.network.graph import Network


@dataclass(frozen=True)
class Live:
    """Live weights of a circuit, bool by layer, shaped like its masks, on the CPU.

    ``origin``: for each layer, of which layers' channels its input channels are (`origins`).
    """

    kept: Mapping[str, Tensor]
    live: Mapping[str, Tensor]
    origin: Mapping[str, list[Origin]]
    groups: Mapping[str, int]

    def units(self, layer: str) -> Tensor:
        """Units that live weights lead into, bool [out]."""
        return self.live[layer].flatten(1).any(1)

    def units_kept(self, layer: str) -> Tensor:
        """Units that kept weights lead into, bool [out]."""
        return self.kept[layer].flatten(1).any(1)


@torch.inference_mode()
def live_circuit(network: Network, unit: int, kept: Mapping[str, Tensor], image: Tensor) -> Live:
    """The live weights of the circuit ``kept`` of output unit ``unit``.

    ``kept``: bool by layer, shaped like its relevant weights; ``image``: network input [1, ...] of
    any content.  Cost: one image, and one pass over the weights.
    """
    pruned, override = circuit_override(network, unit, kept)
    found = paths(pruned, override, {"input": torch.zeros_like(image)})
    live = {}
    steps = {step.name: step for step in found.steps}
    for layer, mask in kept.items():
        weight = override.weights[layer]
        if layer not in steps:  # no part of what leads to the target
            live[layer] = torch.zeros_like(mask)
            continue
        step = steps[layer]
        out = found.varies[layer] & found.needed[layer]
        groups = int(step.settings.get("groups", 1))
        reads = _by_row(found.varies[step.inputs[0]], groups, len(out))
        pair = (out[:, None] & reads).view(*reads.shape, *[1] * (weight.dim() - 2))
        live[layer] = mask & weight.ne(0) & pair
    return _on_cpu(kept, live, found)


def _by_row(channels: Tensor, groups: int, rows: int) -> Tensor:
    """What each of a layer's rows reads of its input's channels [C]: [rows, C / groups]."""
    parts = channels.view(groups, -1)
    return parts.repeat_interleave(rows // groups, 0)


def _on_cpu(kept: Mapping[str, Tensor], live: Mapping[str, Tensor], found: Paths) -> Live:
    of = origins(found)
    steps = {step.name: step for step in found.steps}
    return Live(
        {name: mask.cpu() for name, mask in kept.items()},
        {name: mask.cpu() for name, mask in live.items()},
        {name: of[steps[name].inputs[0]] if name in steps else [] for name in kept},
        {n: int(steps[n].settings.get("groups", 1)) if n in steps else 1 for n in kept},
    )
