"""One circuit's pass over a set of images: pruned weights, exact compaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.runner import Runner
from circuitcore.engine.splits import Split
from circuitcore.kernels.masked_linear.operation import compacted_chain
from circuitcore.kernels.masked_linear.reference import Layer
from circuitcore.network.compact.compaction import compact
from circuitcore.network.compact.pieces import Compacted
from circuitcore.network.forward import (
    Override,
    Tally,
    forward,
    mean_outputs,
    rows_of,
    target_row,
)
from circuitcore.network.graph import Network
from circuitcore.network.repeats import Repeats

KEPT = 255  # the byte of a weight kept at every level
Kept = Mapping[str, Tensor]
"""Bool by layer, shaped like its relevant weights: which are kept; layers not named are whole."""


def circuit_override(
    network: Network, unit: int, kept: Kept, repeats: Repeats | None = None
) -> tuple[Network, Override]:
    """The network's weights with everything outside ``kept`` set to 0, one target row at the end.

    What pruned weights carry on average, where they do, is in the biases.  A last layer of one row
    already is the target's.  ``repeats`` of the network are counted once.
    """
    target = target_row(network, unit) if network.outputs > 1 else Override()
    weights, biases = dict(target.weights), dict(target.biases)
    for name, mask in kept.items():
        whole = weights.get(name, network.weights[name])
        weights[name] = torch.where(mask, whole, whole.new_zeros(()))
        if network.means is not None:
            biases[name] = network.means.bias(name, weights[name], rows_of(network, name, unit))
    override = Override(weights, biases, target.fixed)
    return (network, override) if repeats is None else repeats.once(network, override)


def compacted(
    network: Network,
    unit: int,
    kept: Kept,
    values: Mapping[str, Tensor],
    repeats: Repeats | None = None,
) -> Compacted:
    """A circuit without what it does not need, ready to run on a CPU.

    ``values``: of one image, of any content, what runs will start from (`compact`); ``repeats`` of
    the network are counted once.  Cost: one image, and a pass over the weights.
    """
    network, kept = shrunk(network, unit, kept)
    network, override = circuit_override(network, unit, kept, repeats)
    return compact(network, override, values).gathered(override)


Pass = Callable[[np.ndarray], Tensor]
"""Images of a split, int64 [n] -> target activations float32 [n] on the CPU."""


def activations(
    runner: Runner, split: Split, unit: int, kept: Kept, tally: Tally | None = None
) -> Tensor:
    """Target activations float32 [N] of one circuit on a split, on the CPU: `circuit_pass` once."""
    return circuit_pass(runner, split, unit, kept, tally)(np.arange(len(split)))


@torch.inference_mode()
def circuit_pass(
    runner: Runner,
    split: Split,
    unit: int,
    kept: Kept,
    tally: Tally | None = None,
    precise: bool = True,
    early_whole: bool | None = None,
) -> Pass:
    """A circuit's pass over images of a split, in float32, or else in the sweep's precision.

    ``early_whole``: whether ``kept`` keeps every layer before the boundary whole; None asks the
    masks.

    Cost: a forward pass an image, compacted on a CPU, from the cached boundary values where no
    layer before them is masked and the split has them, else from the images.
    """
    behind = runner.network.after_boundary()
    early = [name for name in runner.network.layers() if name in kept and name not in behind]
    if runner.machine.device.type == "cuda":
        if early_whole is None:
            masks = [kept[name].all() for name in early]
            early_whole = bool(torch.stack(masks).all()) if masks else True
        return _gpu_pass(
            runner, split, unit, kept, bool(split.features) and early_whole, tally, precise
        )
    whole = runner.network if precise else runner.low_network
    whole_ones = torch.stack([kept[name].all() for name in early]).tolist() if early else []
    left = {name for name, is_whole in zip(early, whole_ones, strict=True) if is_whole}
    kept = {name: mask for name, mask in kept.items() if name not in left}
    features = bool(split.features) and all(whole_ones)
    found = compacted(whole, unit, kept, blank(split, whole, features), runner.sizes.repeats)

    @torch.inference_mode()
    def run(images: np.ndarray) -> Tensor:
        return runner.run_chunks(
            split,
            images,
            whole,
            features,
            1,
            lambda values: found.run(values, tally)[None],
            precise,
        )[0]

    return run


def _gpu_pass(
    runner: Runner,
    split: Split,
    unit: int,
    kept: Kept,
    features: bool,
    tally: Tally | None,
    precise: bool,
) -> Pass:
    """Nothing is compacted: a captured pass from the images, or layers masked beforehand."""
    if not features:
        replay, me = runner.replay(precise), object()

        @torch.inference_mode()
        def replayed(images: np.ndarray) -> Tensor:
            replay.hold(me, unit, kept)
            with runner.products(precise):
                return replay.look(split, images, [lambda: None], tally)[0]

        return replayed
    whole = runner.network if precise else runner.low_network
    late = whole.after_boundary()
    left = {name: mask for name, mask in kept.items() if name in late}
    network, override = circuit_override(whole, unit, left)

    def behind(values: dict[str, Tensor]) -> Tensor:
        result = [network.result]
        return forward(network, values, result, override=override, tally=tally)[0].T

    @torch.inference_mode()
    def run(images: np.ndarray) -> Tensor:
        return runner.run_chunks(split, images, network, True, 1, behind, precise)[0]

    return run


def from_boundary(network: Network, split: Split, masked: Collection[str]) -> bool:
    """Whether a circuit runs from the cached boundary values: no layer before them is masked."""
    return bool(split.features) and network.after_boundary().issuperset(masked)


def every_level_of(
    network: Network, names: Collection[str], levels: Mapping[str, Tensor], fixed: Kept
) -> dict[str, Tensor]:
    """Level bytes of layers, as far as they have none those of a mask that is the same at each."""
    found = {}
    for name in names:
        weight = network.weights[name]
        found[name] = levels[name] if name in levels else torch.full(
            network.relevant_shape(name), KEPT, dtype=torch.uint8, device=weight.device
        )  # fmt: skip
        if name in fixed and name not in levels:
            found[name] = found[name] * fixed[name]
    return found


def chain_layers(network: Network, unit: int, levels: Mapping[str, Tensor]) -> list[Layer]:
    """The fc chain for one target unit as (weight, level, bias, ReLU follows).

    ``levels[layer]``: uint8, shaped like the layer's relevant weights.  Biases are `mean_outputs`
    where pruned weights carry means, which `chain_centres` are then to be taken off the inputs.
    """
    target, chain = target_row(network, unit), network.fc_chain() or ()
    biases = {**network.biases, **target.biases}
    biases |= mean_outputs(network, [name for name, _ in chain], unit)
    return [
        (target.weights.get(name, network.weights[name]), levels[name], biases.get(name), relu)
        for name, relu in chain
    ]


def chain_centres(network: Network) -> list[Tensor] | None:
    """The mean inputs of the fc chain's layers; None where pruned weights carry nothing."""
    if network.means is None:
        return None
    return [network.means.inputs[name] for name, _ in network.fc_chain() or ()]


def shrunk(network: Network, unit: int, kept: Kept) -> tuple[Network, Kept]:
    """The network with the masked fc layers compacted, and the masks that are left to apply.

    What follows then scans convolutions and the fc units that survive, not the fc layers whole.
    Both as given where the fc layers are not one masked chain.
    """
    chain = network.fc_chain() or ()
    if not chain or not {name for name, _ in chain} <= set(kept):
        return network, kept
    levels = {name: kept[name].view(torch.uint8) for name, _ in chain}
    left = compacted_chain(chain_layers(network, unit, levels), 0, chain_centres(network))
    if left is None:
        return network, kept
    small = {name: layer for (name, _), layer in zip(chain, left, strict=True)}
    weights = {name: weight for name, (weight, _) in small.items()}
    biases = {name: b for name, b in network.biases.items() if name not in small}
    biases |= {name: bias for name, (_, bias) in small.items() if bias is not None}
    network = replace(network, weights={**network.weights, **weights}, biases=biases)
    return network, {name: mask for name, mask in kept.items() if name not in small}


def blank(split: Split, network: Network, features: bool) -> dict[str, Tensor]:
    """Zeros in place of one image's values, to compact a circuit with."""
    some = next(iter(network.weights.values()))
    shapes = (
        {name: stored.shape[1:] for name, stored in split.features.items()}
        if features
        else {"input": split.pixels.shape[1:]}
    )
    return {name: some.new_zeros((1, *shape)) for name, shape in shapes.items()}
