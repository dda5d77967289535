"""Scoring and ranking on a GPU as one graph: forward, backward, scores, selection, all layers.

Categories differ in their images and in the target's row; both lie where the graph reads them.  So
a category costs three small copies, a replay, a copy of its level bytes, and one wait for the
numbers that belong to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked.tiles import uploaded
from circuitcore.machine.capture import captured
from circuitcore.network.forward import Override, target_row
from circuitcore.network.graph import Network
from circuitcore.options import Options
from circuitcore.scoring.criteria import scored_to
from circuitcore.scoring.levels import StageLevels
from circuitcore.scoring.scores import Contribution, layer_scores


def can_be_captured(network: Network, options: Options) -> bool:
    """Whether no number of scoring and ranking is drawn or decided on the host."""
    some = network.weights[network.last]
    return (
        some.device.type == "cuda"
        and options.criterion not in ("random", "lrp", "ensemble")
        and options.granularity == "weight"
        and choose(options.impl, some, operation="levels") == "triton"
    )


class CapturedRanking:
    """Level bytes of one category after another, by one graph captured for the first.

    ``stages``: their names, those without layers left out; ``note``: told where capturing fails.
    """

    def __init__(
        self, network: Network, options: Options, stages: Sequence[str],
        note: Callable[[str], None] = lambda message: None,
    ) -> None:  # fmt: skip
        self.network, self.options, self.note = network, options, note
        self.layers = {stage: network.layers(stage) for stage in stages if network.layers(stage)}
        self.relevant = {
            stage: sum(math.prod(network.relevant_shape(name)) for name in names)
            for stage, names in self.layers.items()
        }
        self.graph: Any = None
        self.fails = False

    @torch.inference_mode(False)
    def ranked(self, images: Tensor, unit: int) -> dict[str, StageLevels] | None:
        """Each stage's levels for target unit ``unit``, as `stage_levels` gives them.

        ``images`` float32 [N, C, H, W], on the device.  None where the graph does not do: another
        number of images, scores that are not finite, more ties than it has room for.
        """
        if self.fails or (self.graph is not None and images.shape != self.images.shape):
            return None
        try:
            if self.graph is None:
                self._capture(images, unit)
        except RuntimeError as error:
            if not _of_the_device(error):
                raise
            self.fails, self.graph = True, None
            self.note(f"scoring goes on without a captured graph: {error}")
            return None
        self._held(images, unit)
        self.graph.replay()
        flat = {stage: made.flat.clone() for stage, made in self.made.items()}
        whole = self.numbers.cpu()  # the one wait
        parts = whole.split([len(made.numbers) for made in self.made.values()])
        found = {
            stage: self._levels(stage, flat[stage], part.tolist())
            for stage, part in zip(self.layers, parts, strict=True)
        }
        return None if None in found.values() else found  # type: ignore[return-value]

    def _levels(self, stage: str, flat: Tensor, numbers: Sequence[int]) -> StageLevels | None:
        """A stage's levels from its bytes and numbers; None where the bytes do not hold."""
        count, made = len(self.options.grid(stage)), self.made[stage]
        broken, tied, _ = numbers[count : count + 3]
        if broken or tied > made.room:
            return None
        levels = {}
        for name, start in zip(self.layers[stage], made.at, strict=True):
            shape = self.network.relevant_shape(name)
            levels[name] = flat[start : start + math.prod(shape)].view(shape)
        zero = sum(numbers[count + 3 :])
        relevant = self.relevant[stage]
        return StageLevels(stage, levels, tuple(numbers[:count]), relevant, zero / max(relevant, 1))

    def _held(self, images: Tensor, unit: int) -> None:
        """Write what differs between categories where the graph reads it."""
        self.images.copy_(images)
        target = target_row(self.network, unit)
        for name, weight in target.weights.items():
            self.target.weights[name].copy_(weight)
        for name, bias in target.biases.items():
            self.target.biases[name].copy_(bias)
        for name, own in target.fixed.items():
            for buffer, each in zip(self.target.fixed[name], own, strict=True):
                buffer.copy_(each)

    def _capture(self, images: Tensor, unit: int) -> None:
        from circuitcore.kernels.levels.gpu_select import Asked

        device = images.device
        self.images = images.detach().clone()
        target = target_row(self.network, unit)
        self.target = Override(
            {name: weight.clone() for name, weight in target.weights.items()},
            {name: bias.clone() for name, bias in target.biases.items()},
            {name: tuple(each.clone() for each in own) for name, own in target.fixed.items()},
        )
        self.plain = uploaded([0.0, 1.0], device, torch.float32)
        self.asked = {
            stage: Asked.of(
                [round(part * self.relevant[stage]) for part in self.options.grid(stage)], device
            )
            for stage in self.layers
        }
        self.graph, (self.made, self.numbers) = captured(self._run, device)

    def _run(self) -> tuple[dict[str, Any], Tensor]:
        """What is captured: nothing waits for the device, nothing comes from the host."""
        found = scored_to(self.network, self.images, self.target, self.options)
        made = {stage: self._stage(stage, found) for stage in self.layers}
        return made, torch.cat([each.numbers for each in made.values()])

    def _stage(self, stage: str, found: dict[str, Contribution]) -> Any:
        from circuitcore.kernels.levels import gpu, gpu_select

        layers = []
        for name in self.layers[stage]:
            layer = layer_scores(self.network, name, found[name], 0, self.options).layer
            norm = self.plain if layer.norm is None else layer.norm
            layers.append(gpu.prepared(replace(layer, norm=norm)))
        return gpu_select.unwaited(layers, self.asked[stage], self.options.ties)


def _of_the_device(error: RuntimeError) -> bool:
    """Whether a GPU or its libraries refused; any other error is this program's own."""
    refused = re.search("CUDA|cuDNN|cuBLAS|captur", str(error), re.IGNORECASE)
    return isinstance(error, torch.OutOfMemoryError) or refused is not None
