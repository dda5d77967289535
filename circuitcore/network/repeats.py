"""An adaptive pooling larger than what it pools repeats its inputs; here each counts once.

torchvision's AlexNet and VGG pool to 6 x 6 and 7 x 7 whatever the image size: of small images the
last feature map may be 1 x 1, and the Linear layer behind reads 36 copies of it.  What such a layer
gives is then that of the copies' weights summed, on the inputs themselves: exact but for the order
of summation, whatever the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitcore.network.forward import Override
from circuitcore.network.graph import Network
from circuitcore.network.sizes import value_shapes

NONE = Override()


@dataclass(frozen=True)
class Repeats:
    """``pool`` gives [C, H, W] of [C, h, w] by copying, and ``layer`` alone reads it, flattened.

    ``inside``: h, w; ``outside``: H, W, multiples of them.
    """

    pool: str
    layer: str
    channels: int
    inside: tuple[int, int]
    outside: tuple[int, int]

    @property
    def source(self) -> Tensor:
        """Which input each column of the layer is a copy of: int64 [C H W]."""
        (h, w), (tall, wide) = self.inside, self.outside
        rows, columns = torch.arange(tall) * h // tall, torch.arange(wide) * w // wide
        places = rows[:, None] * w + columns
        return (torch.arange(self.channels)[:, None] * (h * w) + places.flatten()).flatten()

    def summed(self, weight: Tensor) -> Tensor:
        """The layer's weights [O, C H W] on the inputs themselves: [O, C h w]."""
        (h, w), (tall, wide) = self.inside, self.outside
        parts = weight.view(len(weight), self.channels, h, tall // h, w, wide // w)
        return parts.sum((3, 5)).flatten(1)

    def once(self, network: Network, override: Override = NONE) -> tuple[Network, Override]:
        """The network whose pooling copies nothing, and what is overridden in it."""
        steps = tuple(
            replace(step, settings={**step.settings, "output_size": self.inside})
            if step.name == self.pool
            else step
            for step in network.steps
        )
        own = override.weights.get(self.layer, network.weights[self.layer])
        summed = {self.layer: self.summed(own)}
        if self.layer in override.weights:
            override = replace(override, weights={**override.weights, **summed})
        return replace(network, steps=steps, weights={**network.weights, **summed}), override


def repeats_of(network: Network, shape: Sequence[int]) -> Repeats | None:
    """What an adaptive pooling repeats for images of ``shape`` [C, H, W]; None where none does.

    Raises RuntimeError where the image does not fit the network.
    """
    readers = {name: [s for s in network.steps if name in s.inputs]
               for name in (step.name for step in network.steps)}  # fmt: skip
    shapes = value_shapes(network, shape)
    for step in network.steps:
        behind = readers[step.name]
        if step.op != "adaptive_avgpool" or [s.op for s in behind] != ["flatten"]:
            continue
        layers = readers[behind[0].name]
        if [s.op for s in layers] != ["linear"]:
            continue
        channels, *inside = shapes[step.inputs[0]]
        _, *outside = shapes[step.name]
        whole = not any(o % i for o, i in zip(outside, inside, strict=True))
        if whole and outside != inside:
            (h, w), (tall, wide) = inside, outside
            return Repeats(step.name, layers[0].name, channels, (h, w), (tall, wide))
    return None
