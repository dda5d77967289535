"""How fast this machine is at what a sweep does: measured in about two seconds, for `plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from circuitcore.engine.footprint import FORWARD_CHUNK
from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.read import Inputs
from circuitcore.machine.device import Machine
from circuitcore.network.forward import forward
from circuitcore.network.repeats import repeats_of
from circuitcore.network.sizes import multiply_adds, value_shapes

SECONDS = 0.5  # of each measurement
BEHIND = 512  # images at once from the boundary on
DECODED = 64  # images
TOUCHES = 40  # times a category's weights are passed over: scored, ranked, surveyed, gathered
HOST = 0.3  # seconds of a category, whatever its size


@dataclass(frozen=True)
class Speed:
    """Seconds: of a multiply-add before (``conv``) and behind the boundary (``fc``), of decoding an
    image with all cores, of a category for each relevant weight (``weight``) beside these.
    """

    conv: float
    fc: float
    decode: float
    weight: float


@torch.inference_mode()
def measured(inputs: Inputs, files: Sequence[ImageFile], pixels: np.ndarray, on: Machine) -> Speed:
    """Measure it with zeros of the shape of ``pixels``, and a few of the images decoded.

    The best of several runs each, as in a process that has compiled its kernels.
    """
    network = inputs.model.network.to(on.device)
    repeats = repeats_of(network, pixels.shape) if on.compacts else None
    if repeats is not None:
        network, _ = repeats.once(network)
    work, shapes = multiply_adds(network, pixels.shape), value_shapes(network, pixels.shape)
    boundary = network.boundary()
    after = network.after_boundary()
    before, behind = (
        sum(each for name, each in work.items() if (name in after) == late)
        for late in (False, True)
    )
    few = max(1, min(FORWARD_CHUNK, int(2e10 / max(before, 1))))
    images = {"input": torch.zeros((few, *pixels.shape), device=on.device)}
    wanted = boundary or (network.result,)
    conv = fastest(lambda: forward(network, images, wanted), on) / (few * max(before, 1))
    fc = conv
    if behind:
        many = {n: torch.zeros((BEHIND, *shapes[n]), device=on.device) for n in boundary}
        fc = fastest(lambda: forward(network, many, [network.result]), on) / (BEHIND * behind)
    largest = max(network.weights.values(), key=lambda w: w.numel())
    kept = largest > 0
    weight = fastest(lambda: torch.where(kept, largest, 0), on) / largest.numel()
    began = time.perf_counter()
    some = list(files[:: max(1, len(files) // DECODED)])[:DECODED]
    decode_all(inputs.source, some, inputs.model.preprocessing)
    decode = (time.perf_counter() - began) / len(some)
    return Speed(conv, fc, decode, TOUCHES * weight)


def fastest(run: Callable[[], object], on: Machine, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of the runs that ``seconds`` have room for, one at least."""
    best, stop = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < stop:
        began = time.perf_counter()
        run()
        if on.device.type == "cuda":
            torch.cuda.synchronize(on.device)
        best = min(best, time.perf_counter() - began)
    return best
