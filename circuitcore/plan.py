"""What a sweep will cost, before it runs: multiply-adds, forward-pass equivalents, bytes, seconds.

The unit is the forward-pass equivalent (FPE): multiply-adds of convolutions and linear layers over
those of one unpruned forward pass of the extraction set.  ``fpe_upper`` runs every level on every
image with nothing compacted; ``fpe`` is the estimate for the options given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from circuitcore.categories import select
from circuitcore.circuit import DENSE_UP_TO
from circuitcore.cost import activation_bytes, multiply_adds
from circuitcore.device import memory_budget, pick
from circuitcore.forward import forward
from circuitcore.images import decode
from circuitcore.network import Network
from circuitcore.options import Options
from circuitcore.prepare import FORWARD_CHUNK, read_inputs
from circuitcore.progress import Progress

STOPPED_EARLY = 0.75  # part of the levels a stop rule looks at, where it may stop


class PlanStep(BaseModel):
    """One kind of work: ``count`` passes of ``multiply_adds`` each; ``fpe`` of all of them."""

    model_config = ConfigDict(frozen=True)

    what: str
    count: int
    multiply_adds: int
    bytes: int
    fpe: float


class Plan(BaseModel):
    """The cost of a sweep; ``fpe`` and ``multiply_adds`` are of one category, the rest of the run.

    ``seconds`` is None without a probe; ``memory_bytes`` is the peak of weights, levels and
    activations, ``disk_bytes`` the circuits and the decoded images and features cached meanwhile.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    categories: int
    fpe: float
    fpe_upper: float
    shared_fpe: float
    multiply_adds: int
    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    steps: list[PlanStep]


def plan(options: Options, wanted: Sequence[str], probe: bool, progress: Progress) -> Plan:
    """Plan the sweep of the wanted categories.  Changes nothing; decodes one image.

    With ``probe``, runs forward passes for a few seconds to expect a time.  Raises what
    `read_inputs` raises.
    """
    device = pick(options)
    inputs = read_inputs(options)
    chosen = select(inputs.categories, wanted)
    network = inputs.model.network
    files = inputs.split("extraction")
    pixels = decode(inputs.root / files[0].path, inputs.model.preprocessing)
    shape = pixels.shape
    per_layer = multiply_adds(network, shape)
    per_layer_target = dict(per_layer)
    per_layer_target[network.last] //= network.outputs  # only the target row
    once = sum(per_layer.values())
    image_bytes = activation_bytes(network, shape)

    count = len(files)
    dense = options.screen == "off" or (options.screen == "auto" and count <= DENSE_UP_TO)
    steps = [PlanStep(what="unpruned network (shared)", count=1, multiply_adds=once * count,
                      bytes=pixels.nbytes * count, fpe=1.0)]  # fmt: skip
    upper = 0
    estimate = 0.0
    for stage, layers in (("fc", network.layers("fc")), ("conv", network.layers())):
        if not network.layers(stage):
            continue
        levels = len(options.grid(stage)) - 1
        work = sum(per_layer_target[name] for name in layers) * count
        upper += levels * work
        looked_at = levels if dense else max(1, round(levels * STOPPED_EARLY))
        estimate += looked_at * work
        steps.append(
            PlanStep(
                what=f"{stage} stage, {levels} levels",
                count=levels,
                multiply_adds=work,
                bytes=network.relevant(stage) * 5,
                fpe=levels * work / (once * count),
            )
        )
    scoring = 3 * once * options.scoring_images  # forward, and backward at twice its cost
    steps.append(PlanStep(what="scoring (not counted in FPE)", count=1, multiply_adds=scoring,
                          bytes=network.relevant() * 5, fpe=0.0))  # fmt: skip
    heldout = sum(per_layer_target.values()) * len(inputs.split("heldout"))
    steps.append(PlanStep(what="held-out test (not counted in FPE)", count=1,
                          multiply_adds=heldout, bytes=0, fpe=0.0))  # fmt: skip

    budget = memory_budget(options, device)
    chunk = min(FORWARD_CHUNK, count, max(1, budget // (2 * image_bytes)))
    weights = 4 * sum(w.numel() for w in network.weights.values())
    activations = min(2 * image_bytes * chunk, budget)
    boundary = _boundary_bytes(network, shape)
    seconds = None
    if probe:
        rate = _rate(network.to(device), shape, device, once)
        each = estimate + scoring + heldout
        shared = once * (count + len(inputs.split("heldout")))
        seconds = (shared + len(chosen) * each) / rate
    return Plan(
        device=str(device),
        categories=len(chosen),
        fpe=estimate / (once * count),
        fpe_upper=upper / (once * count),
        shared_fpe=1.0,
        multiply_adds=round(estimate),
        memory_bytes=2 * weights + network.relevant() + activations,
        disk_bytes=len(chosen) * -(-network.relevant() // 8)
        + pixels.nbytes * (count + len(inputs.split("heldout")))
        + boundary * count,
        seconds=seconds,
        steps=steps,
    )


def _boundary_bytes(network: Network, shape: Sequence[int]) -> int:
    from circuitcore.cost import value_sizes

    sizes = value_sizes(network, shape)
    return 4 * sum(sizes[name] for name in network.boundary())


@torch.inference_mode()
def _rate(network: Network, shape: Sequence[int], device: torch.device, once: int) -> float:
    """Multiply-adds a second of unpruned forward passes, the best of a second's worth of them."""
    count = max(1, min(64, int(2e10 / once)))
    images = torch.zeros((count, *shape), device=device)
    best = float("inf")
    stop = time.perf_counter() + 1.0
    while time.perf_counter() < stop:
        began = time.perf_counter()
        forward(network, {"input": images}, [network.last])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return count * once / best
