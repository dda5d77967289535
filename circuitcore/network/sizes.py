"""What running a network costs, counted from shapes: multiply-adds and bytes, no timing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from circuitcore.network.forward import forward
from circuitcore.network.graph import Network


def value_sizes(network: Network, shape: Sequence[int]) -> dict[str, int]:
    """Numbers each value of the network holds for one image of ``shape`` [C, H, W].

    Raises RuntimeError where the image does not fit the network.
    """
    return {name: math.prod(each) for name, each in value_shapes(network, shape).items()}


@torch.inference_mode()
def value_shapes(network: Network, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of each value of the network for one image of ``shape`` [C, H, W].

    Raises RuntimeError where the image does not fit the network.
    """
    meta = network.to("meta", torch.float32)
    names = [step.name for step in meta.steps]
    image = torch.zeros((1, *shape), device="meta")
    values = forward(meta, {"input": image}, names)
    found = {name: tuple(value.shape[1:]) for name, value in zip(names, values, strict=True)}
    return {"input": tuple(shape), **found}


def multiply_adds(network: Network, shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of every conv and linear layer for one image [C, H, W]."""
    sizes = value_sizes(network, shape)
    return {
        name: sizes[name] * int(network.weights[name].shape[1:].numel())
        for name in network.weighted()
    }


def activation_bytes(
    network: Network, shape: Sequence[int], *, after_boundary: bool = False
) -> int:
    """float32 bytes of the values alive at once in a forward pass of one image, at their peak.

    ``after_boundary``: of the part that starts from the cached boundary values.
    """
    sizes = value_sizes(network, shape)
    if after_boundary and network.boundary():
        behind = network.after_boundary()
        return 4 * sum(size for name, size in sizes.items() if name in behind)
    last_use = {"input": 0}
    for position, step in enumerate(network.steps):
        last_use[step.name] = position
        for name in step.inputs:
            last_use[name] = position
    alive, peak = sizes["input"], 0
    for position, step in enumerate(network.steps):
        alive += sizes[step.name]
        peak = max(peak, alive)
        alive -= sum(sizes[n] for n in {*step.inputs, step.name} if last_use[n] == position)
    return 4 * peak
