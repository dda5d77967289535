"""What a pruned weight is replaced by: nothing, or what it carries on average over some images.

Under mean ablation a layer's output is

    y = conv(x; W o M) + b + (W o (1 - M)) . c  =  conv(x; W o M) + a - (W o M) . c,   a = b + W . c

c[k] the mean, over images and the layer's output positions, of the input that tap k reads (zeros of
the padding counted, so that borders are exact), and a the layer's mean pre-activation.  So a mask
moves a bias and nothing else.  Where nothing is pruned y is the network's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.network.graph import Network, Step

AT_ONCE = 2**24  # weights of a lower precision that are widened together


@dataclass(frozen=True)
class Means:
    """By layer with weights: ``inputs`` c, ``outputs`` a, the mean of what it gives, [out].

    c is [in] of a Linear and [groups, in / groups, r, s] of a convolution, of each group of
    channels and tap.  Float32, or float64 of such a network: a lower precision is the weights'.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Means:
        """On another device, or as a network of ``dtype`` needs them."""
        dtype = None if dtype is None else torch.promote_types(dtype, torch.float32)
        both = (
            {name: each.to(device, dtype) for name, each in some.items()}
            for some in (self.inputs, self.outputs)
        )
        return Means(*both)

    def bias(self, layer: str, masked: Tensor, row: slice = slice(None)) -> Tensor:
        """A layer's bias [out] under a mask; ``masked``: its weights, pruned ones 0.

        ``row``: the outputs that ``masked`` is of.
        """
        moved = self.outputs[layer][row] - carried(masked, self.inputs[layer])
        return moved.to(masked.dtype)


def carried(weight: Tensor, mean: Tensor) -> Tensor:
    """What weights [out, ...] carry on average, W . c: [out], in the dtype of ``mean``."""
    rows = weight.flatten(1)
    if mean.dim() == 1 or len(mean) == 1:
        some = rows.split(max(1, AT_ONCE // rows.shape[1])) if rows.dtype != mean.dtype else [rows]
        return torch.cat([part.to(mean.dtype) @ mean.flatten() for part in some])
    parts = rows.unflatten(0, (len(mean), -1))  # [groups, out / groups, in / groups * taps]
    return (parts * mean.flatten(1)[:, None]).sum(2).flatten()


def means_of(network: Network, inputs: Mapping[str, Tensor]) -> Means:
    """The means of a network of which each layer's mean inputs are known."""
    outputs = {}
    for name, mean in inputs.items():
        found = carried(network.weights[name], mean)
        outputs[name] = found + network.biases[name] if name in network.biases else found
    return Means(dict(inputs), outputs)


class Sums(dict[str, tuple[Tensor, Tensor]]):
    """Takes the values that `forward` records, and keeps of them the sums over images alone.

    ``sums[layer]`` float64, shaped as `Means.inputs` has it, of the mean over positions.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.sums: dict[str, Tensor] = {}

    def __setitem__(self, name: str, found: tuple[Tensor, Tensor]) -> None:
        x, out = found
        whole = x.sum(0, dtype=torch.float64)
        step = self.network.step(name)
        if step.op == "conv":
            whole = _over_positions(whole, step, self.network.weights[name], out.shape[2:])
        self.sums[name] = whole

    def add(self, other: Sums) -> None:
        """Those of more images."""
        for name, each in other.sums.items():
            self.sums[name] = self.sums[name] + each if name in self.sums else each

    def means(self, images: int) -> dict[str, Tensor]:
        """Float32 means over so many images: `Means.inputs`."""
        return {name: (each / images).float() for name, each in self.sums.items()}


def _over_positions(x: Tensor, step: Step, weight: Tensor, out: torch.Size) -> Tensor:
    """The mean over output positions of what each tap reads of x [C, H, W], zeros around it."""
    (up, left), (down, right) = step.settings["padding"], step.settings["stride"]
    tall, wide = step.settings["dilation"]
    x = F.pad(x, (left, left, up, up))
    taps = [
        x[:, r * tall :: down, s * wide :: right][:, : out[0], : out[1]].sum((1, 2))
        for r in range(weight.shape[2])
        for s in range(weight.shape[3])
    ]
    found = torch.stack(taps, 1) / math.prod(out)  # [C, taps]
    return found.view(step.settings["groups"], *weight.shape[1:])
