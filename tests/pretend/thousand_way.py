"""One category of a thousand on a pretended device: AlexNet's shapes, 50,000 images of 224 pixels.

Nothing is computed and no image is decoded: pixels and boundary values are shapes on the device,
and what looks give is what the made-up category of `bench/e2e/thousand.py` says, so that stop
rule, screening and rechecks take real decisions.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torchvision

from circuitcore.engine.footprint import Counts
from circuitcore.engine.prepare import Prepared
from circuitcore.engine.resident import Resident
from circuitcore.engine.runner import Runner, sizes_of
from circuitcore.engine.splits import Largest, Split
from circuitcore.extraction import circuit, floor
from circuitcore.extraction import stage as stages
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.machine.arrivals import may_wait_once
from circuitcore.machine.device import machine
from circuitcore.machine.scratch import Scratch
from circuitcore.network.trace import trace
from circuitcore.options import Options

sys.path.append(str(Path(__file__).parents[2] / "bench" / "e2e"))
CATEGORIES, EXTRACTION, HELDOUT = 1000, 20_000, 30_000
PIXELS = 3, 224, 224
UNIT = 7
FIXED = 3  # the fc level that the made-up conv stage begins at


def alexnet():
    """Torchvision's, with constant weights: nobody looks at them."""
    with torch.device("meta"):
        module = torchvision.models.alexnet(num_classes=CATEGORIES)
    module = module.to_empty(device="cpu").eval()
    for tensor in module.parameters():
        tensor.data.fill_(0.01)
    return trace(module)


def made_up(seed):
    """The category's images of the extraction and of the held-out set."""
    import thousand

    random = np.random.default_rng([seed, 1000])
    found = thousand.category(random)
    with mock.patch.multiple(thousand, IMAGES=HELDOUT, TARGETS=30):
        return found, thousand.category(random)


def split_of(found, first):
    """A split of the made-up category's images: pixels that no memory stands behind."""
    count = len(found.target)
    pixels = np.broadcast_to(np.zeros(1, np.uint8), (count, *PIXELS))
    boundary = {"classifier.0": np.broadcast_to(np.zeros(1, np.float32), (count, 9216))}
    unpruned = torch.from_numpy(found.unpruned).float()
    logits = unpruned[:, None].expand(count, CATEGORIES)
    labels = torch.where(torch.from_numpy(found.target), UNIT, UNIT + 1)
    split = Split(pixels, labels, logits, boundary, first)
    margin = torch.from_numpy(found.margin).float()
    split.__dict__["largest"] = Largest(margin, margin, torch.zeros(count, dtype=torch.int64))
    return split


def prepared(extraction, heldout, network, **options):
    """A run of that problem on ``cuda:0``, as `engine.prepare` would leave it."""
    chosen = Options(device="cuda:0", **options)
    on, counts = machine(chosen), Counts(EXTRACTION, HELDOUT, CATEGORIES)
    moved = network.to(on.device)
    low = moved if on.dtype == torch.float32 else moved.to(on.device, on.dtype)
    split = split_of(extraction, 0), split_of(heldout, EXTRACTION)
    name = next(iter(moved.boundary()))
    split = [replace(s, features={name: s.features["classifier.0"]}) for s in split]
    for new, old in zip(split, (extraction, heldout), strict=True):
        new.__dict__["largest"] = split_of(old, 0).largest
    sizes = sizes_of(moved, PIXELS, chosen, on, counts)
    assert sizes.resident, "50,000 images fit"
    resident = Resident(
        torch.empty(EXTRACTION + HELDOUT, *PIXELS, dtype=torch.uint8, device=on.device),
        {name: torch.empty(EXTRACTION + HELDOUT, 9216, device=on.device)},
    )
    own = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
    runner = Runner(on, moved, low, own, sizes, lambda message: None, resident)
    inputs = SimpleNamespace(
        model=SimpleNamespace(network=network), categories=range(CATEGORIES),
        scoring_images=lambda unit, device: torch.zeros(4, *PIXELS, device=device),
    )  # fmt: skip
    return Prepared(inputs, chosen, runner, split[0], split[1], Scratch())


def answered(patch, category, seed):
    """Looks run, and are counted; what they say is what the made-up ``category`` says."""
    from margins import load
    from test_fpe import nearest
    from thousand import moved

    real, random = load()[0], np.random.default_rng([seed, 1000, 1])
    rows = {"fc": moved(random, category.unpruned, category.target, real.fc, real.target)}
    executor = stages.executor

    def executed(*given):
        runs = executor(*given)
        if runs.assigned.stage == "conv":
            level = nearest(list(real.conv), FIXED)
            start = rows["fc"][FIXED].double().numpy()
            rows["conv"] = moved(random, start, category.target, real.conv[level], real.target)
        look, mine = runs.look, rows[runs.assigned.stage]

        def looked(levels, images, precise):
            look(levels, images, precise)
            return mine[list(levels)][:, torch.from_numpy(images)].float()

        looked.unwaited = may_wait_once(look)
        runs.look = looked
        return runs

    def passed(made):
        def run(*given, **options):
            inner = made(*given, **options)

            def found(images):
                inner(images)
                return torch.zeros(len(images))

            return found

        return run

    patch.setattr(stages, "executor", executed)
    patch.setattr(circuit, "circuit_pass", passed(circuit.circuit_pass))
    patch.setattr(floor, "circuit_pass", passed(floor.circuit_pass))
