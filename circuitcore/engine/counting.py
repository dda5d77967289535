"""What one look of a sweep asks of a GPU, counted from shapes: the same launches as `replay`,
`runner` and `passes` make, which a test holds against a pretended device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from circuitcore.engine.footprint import FORWARD_CHUNK, REPLAY_CHUNK, chunk, feature_chunk
from circuitcore.engine.replay import ROOM, batches, first_step
from circuitcore.engine.runner import Sizes
from circuitcore.kernels.first_conv.blocks import blocks
from circuitcore.kernels.masked.gpu_cost import LIBRARY_TILE, MaskedShape
from circuitcore.kernels.masked_linear.library import TOGETHER
from circuitcore.machine.target import (
    CHANNELS,
    Target,
    Work,
    item_bytes,
    kernel,
    masked_layer,
)
from circuitcore.network.graph import Network, Step
from circuitcore.network.layers.table import LAYERS
from circuitcore.network.sizes import value_shapes

NUMBER = 8  # bytes of an image's number
REPLAYED_BESIDE = 5  # kernels of a captured pass beside the network's: rows, results, counters
NORMALISED, FROM_BYTES = 5, 6  # kernels that take the pixels, or are the first convolution of bytes
PIXEL_PASSES = 2 + (1 + 4) + 3 * (4 + 4)  # bytes a pixel's value: taken, to float32, normalised


def launches(network: Network, without: Collection[str] = ()) -> int:
    """Kernels of one pass: of layers with weights one, of others as many as the table says."""
    steps = [step for step in network.steps if step.name not in without]
    return sum(LAYERS[s.op].kernels if s.op in LAYERS else 1 for s in steps)


@dataclass(frozen=True)
class Counting:
    """What is counted from: a network and images of ``shape`` [C, H, W] as `Sizes` says, a device.

    ``images``: of both sets, on the device if ``sizes.resident``; ``precision``: of a sweep, a
    dtype's name or ``tf32``; what is rechecked is float32.
    """

    network: Network
    shape: tuple[int, ...]
    sizes: Sizes
    images: int
    target: Target
    precision: str
    masked: bool = True

    @cached_property
    def values(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's values."""
        return value_shapes(self.network, self.shape)

    @property
    def batch(self) -> int:
        """Most images of a replay."""
        return min(chunk(self.sizes.memory, self.sizes.image_bytes), REPLAY_CHUNK)

    @property
    def pixels(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    def _precision(self, precise: bool) -> str:
        return "float32" if precise else self.precision

    def _size(self, name: str) -> int:
        return math.prod(self.values[name])

    def kernels(
        self, images: int, precision: str, rows: int = 1, without: Collection[str] = ()
    ) -> Iterator[Work]:
        """Every kernel of one pass from network input to logits, ``rows`` of the last layer."""
        item, target = item_bytes(precision), self.target
        for step in self.network.steps:
            if step.name in without:
                continue
            read = images * item * sum(self._size(name) for name in step.inputs)
            written = images * item * self._size(step.name)
            if step.op in ("conv", "linear"):
                last = step.name == self.network.last
                weights = self.network.weights[step.name]
                written = written // weights.shape[0] * rows if last else written
                count = weights[0].numel() * rows if last else weights.numel()
                work = self._multiply_adds(
                    step, images, precision, rows if last else weights.shape[0]
                )
                rate = target.conv_rate(precision)
                yield kernel(target, work, read + written + count * item, rate)
            else:  # a rectifier works in place, others read their values and write another
                yield from [kernel(target, 0, read + written)] * LAYERS[step.op].kernels

    def _multiply_adds(self, step: Step, images: int, precision: str, rows: int) -> int:
        """As the library executes them: channels and outputs filled up."""
        weights = self.network.weights[step.name]
        if step.op == "linear":
            return -(-images // LIBRARY_TILE) * LIBRARY_TILE * rows * int(weights.shape[1])
        positions = images * self._size(step.name) // weights.shape[0]
        channels, taps = int(weights.shape[1]), math.prod(weights.shape[2:])
        if int(step.settings.get("groups", 1)) == 1:
            whole = 1 if precision == "float32" else CHANNELS[item_bytes(precision)]
            channels = -(-channels // whole) * whole
            rows = -(-rows // LIBRARY_TILE) * LIBRARY_TILE
        return positions * rows * channels * taps

    def captured(self, images: int, precise: bool) -> Work:
        """One replay: the first convolution from bytes, or normalised pixels, and the network."""
        precision = self._precision(precise)
        item, low = item_bytes(precision), item_bytes(precision) < 4
        begun: tuple[str, ...] = ()
        if (first := first_step(self.network)) is not None:
            begun = tuple(dict.fromkeys((first[0].name, first[1])))
            total, beside = self._from_bytes(*first, images, precision), FROM_BYTES
        else:
            moved = images * self.pixels * (PIXEL_PASSES + (4 + item if low else 0))
            total, beside = kernel(self.target, 0, moved), NORMALISED + low
        for each in self.kernels(images, precision, without=begun):
            total += each
        steps = launches(self.network, without=begun)
        return total + Work(replays=1, replayed=steps + REPLAYED_BESIDE + beside + low)

    def _from_bytes(self, step: Step, value: str, images: int, precision: str) -> Work:
        """The first convolution: bytes to blocks of pixels, a product, its rectifier."""
        item, weights = item_bytes(precision), self.network.weights[step.name]
        out, stride = self.values[step.name], step.settings["stride"]
        c, r, w = weights.shape[1:]
        form = blocks((c, r, w), (out[1], out[2]), (stride[0], stride[1]), item)
        blocked = images * form.channels * form.size[0] * form.size[1] * item
        written = images * math.prod(out) * item
        found = kernel(self.target, 0, images * self.pixels + blocked)
        work = images * math.prod(out) * form.fan_in
        found += kernel(self.target, work, blocked + written, self.target.conv_rate(precision))
        return found + kernel(self.target, 0, 2 * written if value != step.name else 0)

    def replayed(self, levels: int, images: int, precise: bool, written: bool = True) -> Work:
        """`Replay.look`; ``written``: each level's weights are, before its passes."""
        sizes, convolutions = batches(images, self.batch), sum(self._convolutions().values())
        item = item_bytes(self._precision(precise))
        found = Work(to_host=4 * levels * images)
        for size in set(sizes):
            found += self.captured(size, precise) * (levels * sizes.count(size))
        level = kernel(self.target, 0, convolutions * (1 + 2 * item)) if written else Work()
        found += (level + Work(launches=1 + written)) * levels
        if self.sizes.resident:
            room = (self.images + ROOM * self.batch) // max(1, sum(sizes))
            parts = -(-levels // max(1, room))
            return found + Work(launches=1, syncs=1, to_device=NUMBER * images) * parts
        pixels = Work(to_device=images * self.pixels)  # level weights are written for every batch
        again = (level + Work(launches=1 + written)) * (levels * (len(sizes) - 1))
        return found + pixels + again + Work(launches=1, syncs=1) * len(sizes)

    def _convolutions(self) -> dict[str, int]:
        """Weights of the convolutions in the flat buffer of a `Replay`."""
        names = (n for n in self.network.weighted("conv") if n != self.network.last)
        return {name: self.network.weights[name].numel() for name in names}

    def held(self, precise: bool, levels: bool = False) -> Work:
        """`Replay.hold`: a circuit into the static buffers, or what ``levels`` do not write."""
        item, flat = item_bytes(self._precision(precise)), self._convolutions() if levels else {}
        names = [name for name in self.network.weighted() if name not in flat]
        launches = len(names) + (self.network.last in self.network.biases)
        moved = sum(math.prod(self.network.relevant_shape(n)) for n in names) * (2 * item + 1)
        return kernel(self.target, 0, moved) + Work(launches=launches)

    def chained(self, levels: int, images: int, precise: bool) -> Work:
        """A look from boundary values, all levels in one pass of every chunk.

        Of `ChainExecutor`, or of `MaskedExecutor` where what follows is no chain.
        """
        if not levels:
            return Work()
        most = feature_chunk(self.sizes.memory, self.sizes.feature_bytes, levels, self.masked)
        whole, rest = divmod(images, most)
        found = Work(syncs=1, to_host=4 * levels * images)
        found += self._chain(levels, most, precise) * whole if whole else Work()
        return found + (self._chain(levels, rest, precise) if rest else Work())

    def _chain(self, levels: int, images: int, precise: bool) -> Work:
        """One chunk of `chained`."""
        precision = self._precision(precise)
        item, chain = item_bytes(precision), self.network.fc_chain()
        width = sum(self._size(name) for name in self.network.boundary())
        taken = images * width * (8 + (4 + item if item < 4 else 0))
        found = kernel(self.target, 0, taken)
        found += Work(
            launches=1 + bool(self.sizes.resident) + (item < 4),
            to_device=images * (NUMBER if self.sizes.resident else 4 * width),
        )
        if chain is None:
            after = self.network.behind(self.network.late())
            early = [step.name for step in self.network.steps if step.name not in after]
            for each in self.kernels(levels * images, precision, without=early):
                found += each
        for place, (name, relu) in enumerate(chain or ()):
            rows, columns = self.network.relevant_shape(name)
            shape = MaskedShape(levels, images, rows, columns, precision, shared=place == 0)
            path, work = masked_layer(self.target, shape)
            launches = 1
            if path == "library":
                together = max(1, TOGETHER // (rows * columns))
                launches = 2 * -(-levels // together) + relu
                moved = 2 * levels * images * rows * item * relu
                work += kernel(self.target, 0, moved)
            found += work + Work(launches=launches, to_device=4 * levels)
        return found

    def unpruned(self) -> Work:
        """`unpruned.unpruned` on all images: IEEE float32, logits and boundary values kept."""
        sizes = [FORWARD_CHUNK] * (self.images // FORWARD_CHUNK)
        sizes += [self.images % FORWARD_CHUNK] if self.images % FORWARD_CHUNK else []
        boundary = self.network.boundary()
        found = Work()
        for size in set(sizes):
            one = kernel(self.target, 0, size * self.pixels * (PIXEL_PASSES + 1))
            for each in self.kernels(size, "float32", self.network.outputs):
                one += each
            values = self.network.outputs + sum(self._size(name) for name in boundary)
            one += Work(
                launches=5 + launches(self.network) + len(boundary),
                syncs=1 + len(boundary),
                to_host=4 * size * values,
            )
            found += one * sizes.count(size)
        return found
