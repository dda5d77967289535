"""Circuits' passes over images on a GPU: weights in static buffers, passes captured once, replayed.

The hundreds of passes of a category, and those of all categories, differ in their weights and in
which images they take.  Both lie where a captured CUDA graph reads them: a level's masked weights
are written with two launches for all its convolutions, the images are rows of what is resident, and
a replay finds by counters on the device which of them are its own and where its results go.  So a
look at any levels and images costs one copy of the images' numbers to the device, three launches a
level, a replay a batch, and one copy of the results back: the one synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitcore.engine.splits import Split
from circuitcore.inputs.pixels import Normaliser, to_device
from circuitcore.kernels.first_conv.operation import first_conv
from circuitcore.kernels.levels.layer import MAX_LEVELS
from circuitcore.kernels.masked_weights.operation import masked_weights
from circuitcore.kernels.spans import CAPTURED, span, work
from circuitcore.machine.arrivals import arrived, waiting_each_time
from circuitcore.machine.capture import captured
from circuitcore.machine.chunks import smaller
from circuitcore.network.forward import (
    Override,
    Tally,
    forward,
    only_relu,
    rows_of,
    target_row,
)
from circuitcore.network.graph import Network, Step

STEP = 64  # batches are whole multiples of it: few different graphs, little filled up
ROOM = 32  # whole batches of results that wait on the device at most

Write = Callable[[], None]
"""Puts a circuit into the static buffers."""


class Replay:
    """One network's passes on one device, for any circuit and target unit.

    ``network``: in the precision of the passes; ``resident`` [M, C, H, W]: the pixels of a run's
    images on the device, None where they do not fit: chunks of them are copied then;
    ``normalise``: from pixels to network input; ``batch``: most images a replay; ``multiply_adds``:
    of one image and target unit; ``impl`` as in `dispatch.choose`; ``fallback``: whether batches
    get smaller where memory runs out, and ``note`` is told.
    """

    def __init__(
        self,
        network: Network,
        resident: Tensor | None,
        normalise: Normaliser,
        batch: int,
        multiply_adds: int,
        *,
        impl: str = "auto",
        fallback: bool = True,
        note: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.network, self.resident, self.normalise = network, resident, normalise
        self.impl, self.first = impl, first_step(network)
        self.multiply_adds, self.fallback, self.note = multiply_adds, fallback, note
        some = network.weights[network.last]
        self.device, self.nothing = some.device, some.new_zeros(())
        self.convolutions = [n for n in network.weighted("conv") if n != network.last]
        every = [_flat(network.weights[n]) for n in self.convolutions]
        self.whole = torch.cat(every) if every else some.new_zeros(0)
        self.masked = self.whole.clone()
        self.numbers = torch.arange(MAX_LEVELS + 1, dtype=torch.int32, device=self.device)
        weights = dict(zip(self.convolutions, self._views(), strict=True))
        for name in network.weighted():
            if name not in weights:
                weights[name] = some.new_zeros(network.relevant_shape(name))
        target = target_row(network, 0)
        biases = {name: bias.clone() for name, bias in target.biases.items()}
        if network.means is not None:  # a mask moves its layer's; a convolution's in the graph
            biases |= {
                name: some.new_zeros(len(weight))
                for name, weight in weights.items()
                if name not in self.convolutions
            }
        self.unit = 0
        fixed = {name: _apart(own) for name, own in target.fixed.items()}
        self.circuit = Override(weights, biases, fixed)
        self.holder: object = None
        self._sized(batch)

    def _views(self) -> list[Tensor]:
        """The masked convolutions' weights [O, I, R, S], channels-last, in the one flat buffer."""
        views, start = [], 0
        for name in self.convolutions:
            out, channels, rows, columns = self.network.weights[name].shape
            part = self.masked[start : start + out * channels * rows * columns]
            views.append(part.view(out, rows, columns, channels).permute(0, 3, 1, 2))
            start += part.numel()
        return views

    def _sized(self, batch: int) -> None:
        """Make what depends on the size of a batch; graphs read and write these very tensors."""
        numbers: dict[str, Any] = {"dtype": torch.int64, "device": self.device}
        images = batch if self.resident is None else len(self.resident)
        self.batch, self.capacity = batch, images + ROOM * batch
        self.order = torch.zeros(images + batch, **numbers)
        self.counters = torch.zeros(2, **numbers)
        self.at, self.to = self.counters[:1], self.counters[1:]
        self.steps = torch.arange(batch, **numbers)
        self.found = torch.zeros(self.capacity, device=self.device)
        self.source = self.resident
        self.graphs: dict[int, Any] = {}
        self.pool: Any = None

    def hold(
        self, holder: object, unit: int, kept: Mapping[str, Tensor], levels: bool = False
    ) -> None:
        """Write a circuit for ``unit``, layers not in ``kept`` whole; nothing while it is held.

        ``levels``: the convolutions are left to `level`.  Cost: a launch a layer.
        """
        if self.holder is holder:
            return
        network, target = self.network, target_row(self.network, unit)
        for name, buffer in self.circuit.weights.items():
            if levels and name in self.convolutions:
                continue
            weight = target.weights.get(name, network.weights[name])
            if name in kept:
                torch.where(kept[name], weight, self.nothing, out=buffer)
            else:
                buffer.copy_(weight)
        self.unit = unit
        for name, buffer in self.circuit.biases.items():
            whole = target.biases.get(name, network.biases.get(name))
            if name in kept and network.means is not None:
                self._moved(name)
            elif whole is not None:
                buffer.copy_(whole)
            else:
                buffer.zero_()
        for name, buffers in self.circuit.fixed.items():
            for buffer, own in zip(buffers, target.fixed[name], strict=True):
                buffer.copy_(own)
        self.holder = holder

    def level(
        self, levels: Tensor, t: int, apart: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        """Write all convolutions at level ``t``; ``levels`` uint8 as `flat_levels` gives them.

        ``apart``: weights and levels of layers that do not lie in the flat buffer.
        """
        if len(self.whole):
            masked_weights(
                self.whole, levels, self.numbers[t : t + 1], self.masked[None], impl=self.impl
            )
        for name, (weight, own) in (apart or {}).items():
            torch.where(own > t, weight, self.nothing, out=self.circuit.weights[name])
            if self.network.means is not None:
                self._moved(name)

    def _moved(self, name: str) -> None:
        """Write a layer's bias as its mask moves it."""
        assert self.network.means is not None
        rows = rows_of(self.network, name, self.unit)
        moved = self.network.means.bias(name, self.circuit.weights[name], rows)
        self.circuit.biases[name].copy_(moved)

    def _as_moved(self) -> Override:
        """The circuit, with the convolutions' biases as their masks move them."""
        means, circuit = self.network.means, self.circuit
        if means is None:
            return circuit
        moved = {name: means.bias(name, circuit.weights[name]) for name in self.convolutions}
        return replace(circuit, biases={**circuit.biases, **moved})

    def look(
        self, split: Split, images: np.ndarray, writes: Sequence[Write], tally: Tally | None = None
    ) -> Tensor:
        """Target activations float32 [len(writes), n] of a split's images int64 [n], on the CPU.

        Each of ``writes`` makes the circuit that its row is of.  ``tally`` is told what ran, the
        images that fill up the last batch with it.  Raises DeviceError where memory runs out.
        """
        while True:
            try:
                run = self._staged if self.resident is None else self._resident
                each = ROOM if self.resident is None else self._room(len(images))
                parts = [writes[k : k + each] for k in range(0, len(writes), each)]
                if len(parts) == 1:
                    return run(split, images, writes, tally)
                with waiting_each_time():
                    return torch.cat([run(split, images, part, tally) for part in parts])
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # a graph is captured before anything is counted: nothing is counted twice
                self._sized(smaller(error, self.batch, self.fallback, self.note))

    def _resident(
        self, split: Split, images: np.ndarray, writes: Sequence[Write], tally: Tally | None
    ) -> Tensor:
        """All images at a circuit, then the next."""
        sizes = self.batches(len(images))
        self.order[: len(images)].copy_(to_device(images + split.first, self.device))
        for place, write in enumerate(writes):
            write()
            (self.at if place else self.counters).zero_()
            for size in sizes:
                self._replay(size)
            self._count(tally, sum(sizes))
        rows = self.found[: len(writes) * sum(sizes)].view(-1, sum(sizes))
        return arrived(rows[:, : len(images)])

    def _staged(
        self, split: Split, images: np.ndarray, writes: Sequence[Write], tally: Tally | None
    ) -> Tensor:
        """A batch of images at all circuits, then the next: images cross to the device once."""
        if self.source is None:
            shape, dtype = split.pixels.shape[1:], torch.from_numpy(split.pixels[:1]).dtype
            self.source = torch.zeros((self.batch, *shape), dtype=dtype, device=self.device)
            self.order[: self.batch] = self.steps
        out = torch.empty(len(writes), len(images))
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            (size,) = self.batches(len(part))
            self.source[: len(part)].copy_(to_device(split.pixels[part], self.device))
            for place, write in enumerate(writes):
                write()
                (self.at if place else self.counters).zero_()
                self._replay(size)
                self._count(tally, size)
            rows = self.found[: len(writes) * size].view(-1, size)
            out[:, start : start + len(part)] = rows[:, : len(part)].cpu()
        return out

    def _room(self, count: int) -> int:
        """At how many circuits the results of so many images fit the buffer."""
        return max(1, self.capacity // max(1, sum(self.batches(count))))

    def _count(self, tally: Tally | None, images: int) -> None:
        if tally is not None:
            tally.add(images * self.multiply_adds)

    def batches(self, count: int) -> list[int]:
        """Batches of ``count`` images: whole ones, and one just large enough for the rest."""
        return batches(count, self.batch)

    def _replay(self, size: int) -> None:
        graph = self._graph(size)
        with span("layer", CAPTURED, size):
            graph.replay()
            work(size * self.multiply_adds)

    def _graph(self, size: int) -> Any:
        """The captured pass over the next ``size`` images; captured when it is first asked for."""
        if size not in self.graphs:
            before = self.counters.clone()
            graph, _ = captured(lambda: self._pass(size), self.device, self.pool)
            self.counters.copy_(before)
            self.pool = self.pool or graph.pool()
            self.graphs[size] = graph
        return self.graphs[size]

    def _pass(self, size: int) -> None:
        """Run the next ``size`` images of ``order``; results and counters stay on the device."""
        assert self.source is not None
        steps, circuit = self.steps[:size], self._as_moved()
        rows = self.order.index_select(0, self.at + steps)
        values, result = self._begun(self.source, rows, circuit), [self.network.result]
        out = forward(self.network, values, result, override=circuit)[0]
        self.found.index_copy_(0, self.to + steps, out[:, 0].float())
        self.counters += size

    def _begun(self, source: Tensor, rows: Tensor, circuit: Override) -> dict[str, Tensor]:
        """The network's input of images ``rows``, or straight from bytes its first convolution."""
        if self.first is None or source.dtype != torch.uint8:
            images = self.normalise(source.index_select(0, rows))
            return {"input": images.to(self.nothing.dtype)}
        step, value = self.first
        bias = circuit.biases.get(step.name, self.network.biases.get(step.name))
        out = first_conv(
            source, circuit.weights[step.name], bias,
            mean=self.normalise.mean, std=self.normalise.std, index=rows,
            stride=step.settings["stride"], padding=step.settings["padding"],
            relu=value != step.name, impl=self.impl,
        )  # fmt: skip
        return {value: out}


def first_step(network: Network) -> tuple[Step, str] | None:
    """The convolution that alone reads the images, and the value its kernel gives.

    That of the rectifier behind it where only that reads it.  None where it is not so simple.
    """
    readers = [step for step in network.steps if "input" in step.inputs]
    if [step.op for step in readers] != ["conv"]:
        return None
    (step,) = readers
    if step.settings["groups"] != 1 or tuple(step.settings["dilation"]) != (1, 1):
        return None
    return step, only_relu(network.steps, step, ()) or step.name


def _apart(own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Buffers of a step's own fixed tensors."""
    return tuple(each.clone() for each in own)


def batches(count: int, batch: int) -> list[int]:
    """Batches of at most ``batch`` that ``count`` images fill: whole ones, and one for the rest."""
    whole, rest = divmod(count, batch)
    last = [min(-(-rest // STEP) * STEP, batch)] if rest else []
    return [batch] * whole + last


def _flat(weight: Tensor) -> Tensor:
    """A convolution's weights, or their level bytes, in the order channels-last memory has them."""
    return weight.permute(0, 2, 3, 1).reshape(-1)


def flat_levels(levels: Mapping[str, Tensor], convolutions: Sequence[str]) -> Tensor:
    """The level bytes of all convolutions as the flat buffer of their weights has them."""
    every = [_flat(levels[name]) for name in convolutions]
    return torch.cat(every) if every else next(iter(levels.values())).new_zeros(0)
