"""What a sweep is expected to do, counted from shapes and options: multiply-adds by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from circuitcore.engine.footprint import as_run, unfit
from circuitcore.extraction.judging import every_level
from circuitcore.extraction.screening import run_at_every_level
from circuitcore.inputs.image_files import ImageFile
from circuitcore.inputs.read import Inputs
from circuitcore.machine.device import Machine
from circuitcore.network.graph import Network
from circuitcore.network.sizes import multiply_adds
from circuitcore.options import Options
from circuitcore.scoring.criteria import check_criterion

STOPPED_EARLY = 0.75  # part of the levels a stop rule looks at, where it may stop
# Part of the multiply-adds that compaction leaves, over a default grid, as counted on the bundled
# network (0.25, 0.33) and on an AlexNet trained on Fashion-MNIST (0.09, 0.33).
LEFT = {"fc": 0.2, "conv": 0.33}
# Screened to the first crossing, as counted on the thousand characters of `bench/e2e`: passes over
# all images at the dense levels of the fc stage, what these leave, and how often a convolution is
# pruned at all behind an fc circuit that stands at the same threshold.
CROSSED = 3.0
DENSE_LEFT = 0.7
PRUNED = 0.2


@dataclass(frozen=True)
class Typical:
    """A category's looks at a stage, beside the first at each level, means over categories.

    Of the fc stage all levels are looked at once, then single ones ``fc`` times, ``fc_images`` in
    all; levels of the conv stage ``conv`` times, ``conv_images`` in all; ``fc_whole`` and
    ``conv_whole``: how often a level is certified on the images not yet run.  In low precision
    ``fc_rechecks`` looks at the fc stage and ``rechecks`` at the other are in float32, of
    ``fc_rechecked`` and ``rechecked`` images, and ``heldout`` of the held-out test, of the few
    images closest to the bias.
    """

    fc: float
    fc_images: float
    conv: float
    conv_images: float
    fc_whole: float
    conv_whole: float
    fc_rechecks: float
    fc_rechecked: float
    rechecks: float
    rechecked: float
    heldout: float = 1.08


COUNTED = "python bench/e2e/looks.py, 24 made-up categories of 1,000 as in bench/e2e/test_fpe.py"
TYPICAL_IMAGES = 20_000
TYPICAL = {  # in bfloat16: the most rechecks
    "first-crossing": Typical(0.88, 1470, 3.79, 1460, 1.0, 0.83, 4.45, 96, 3.66, 48),
    "sparsest-above": Typical(7.0, 19780, 35.21, 24466, 0.0, 0.0, 3.87, 93, 9.25, 264),
}


class PlanStep(BaseModel):
    """One kind of work: ``count`` passes of ``multiply_adds`` each; ``fpe`` of all of them."""

    model_config = ConfigDict(frozen=True)

    what: str
    count: int
    multiply_adds: int
    bytes: int
    fpe: float


class Expected(NamedTuple):
    """Multiply-adds, by kind: ``once``, a forward pass of one image, and its ``conv`` and ``fc``
    layers as they run, what a pooling copies counted once; ``shared`` by all categories;
    of one category, its ``stages`` and the ``heldout`` test (``expected`` of both, in convolutions
    and in fc layers; at most ``upper``), and what FPE leaves out: ``scoring``, and ``apart`` the
    random masks.
    """

    once: int
    conv: int
    fc: int
    shared: PlanStep
    stages: dict[str, PlanStep]
    heldout: PlanStep
    scoring: PlanStep
    apart: list[PlanStep]
    expected: dict[str, float]
    upper: int


def expected(inputs: Inputs, options: Options, machine: Machine, pixels: np.ndarray) -> Expected:
    """What there is to do, from shapes, for images like ``pixels``; backward costs two forward."""
    network, files = inputs.model.network, inputs.split("extraction")
    check_criterion(network, options)
    once, count = _of_one(network, pixels.shape), len(files)
    lean, _ = as_run(network, pixels.shape, machine)
    per_layer = multiply_adds(lean, pixels.shape)
    per_layer[network.last] //= network.outputs  # only the target row
    late = network.after_boundary()
    fc = sum(each for name, each in per_layer.items() if name in late)
    conv = sum(per_layer.values()) - fc
    targets = len(files_of_one(files))
    passes = (_passes if machine.compacts else _uncompacted)(network, options, count, targets)
    tests = len(inputs.split("heldout"))
    likely = {
        "conv": conv * (count * passes.conv + tests * passes.tested_conv),
        "fc": fc * (count * (passes.fc + passes.conv) + tests * passes.tested_fc),
    }
    upper, stages = 0, {}
    for stage, names in network.stages.items():
        each = fc if late.issuperset(names) else conv + fc
        levels = len(options.grid(stage)) - 1
        upper += levels * each * count
        stages[stage] = PlanStep(
            what=f"{stage} stage, {levels} levels",
            count=levels,
            multiply_adds=each * count,
            bytes=network.relevant(stage) * 5,
            fpe=levels * each / once,
        )

    tested = (conv + fc) * tests
    heldout = PlanStep(what="held-out test", count=1, multiply_adds=tested, bytes=0,
                       fpe=tested / (once * count))  # fmt: skip
    scoring = PlanStep(
        what="scoring (not counted in FPE)",
        count=1,
        multiply_adds=3 * once * options.scoring_images * options.scoring_passes(),
        bytes=network.relevant() * 5,
        fpe=0.0,
    )
    looked = targets + sum(run_at_every_level(count, targets, "sparsest-above"))
    apart = [
        PlanStep(what="random masks (not counted in FPE)", count=options.random_masks,
                 multiply_adds=min(looked, count) * sum(per_layer.values()), bytes=0, fpe=0.0)
    ] if options.random_masks else []  # fmt: skip
    upper += tested
    shared = PlanStep(what="unpruned network (shared)", count=1, multiply_adds=once * count,
                      bytes=pixels.nbytes * count, fpe=1.0)  # fmt: skip
    return Expected(once, conv, fc, shared, stages, heldout, scoring, apart, likely, upper)


def _of_one(network: Network, shape: Sequence[int]) -> int:
    """Multiply-adds of one image [C, H, W].  Raises InputError where it does not fit."""
    try:
        return sum(multiply_adds(network, shape).values())
    except RuntimeError as error:
        raise unfit(shape, error) from None


def files_of_one(files: Sequence[ImageFile]) -> list[ImageFile]:
    """The images of the first category among ``files``."""
    return [file for file in files if file.category == files[0].category]


class _Passes(NamedTuple):
    """Expected of one category, in passes over a whole set, with nothing compacted: of the layers
    behind the boundary in stages swept from there (``fc``), of all in the others, and of layers
    before and behind it in the held-out test.
    """

    fc: float
    conv: float
    tested_conv: float
    tested_fc: float


def levels_run(network: Network, options: Options) -> dict[str, int]:
    """Levels of the stages swept from boundary values (``fc``), and of those swept from images."""
    levels, late = {"fc": 0, "conv": 0}, network.after_boundary()
    for stage, names in network.stages.items():
        levels["fc" if late.issuperset(names) else "conv"] += len(options.grid(stage)) - 1
    return levels


def _passes(network: Network, options: Options, images: int, targets: int) -> _Passes:
    """What a sweep over so many images, ``targets`` of them the category's, runs compacted."""
    levels = levels_run(network, options)
    left = LEFT["conv"]
    if every_level(options, images):
        return _Passes(LEFT["fc"] * levels["fc"], left * levels["conv"], left, left)
    part = (targets + sum(run_at_every_level(images, targets, options.stop))) / images
    if options.stop == "first-crossing":
        looks = part * levels["fc"] * LEFT["fc"]
        fc = min(looks + DENSE_LEFT * CROSSED, LEFT["fc"] * levels["fc"])
        return _Passes(fc, DENSE_LEFT * (part + PRUNED), DENSE_LEFT * PRUNED, DENSE_LEFT)
    looked = {stage: max(1, round(STOPPED_EARLY * count)) for stage, count in levels.items()}
    fc, conv = (min(looked[s], 2 * looked[s] * part + 1) * LEFT[s] for s in ("fc", "conv"))
    return _Passes(fc, conv, left, left)


def _uncompacted(network: Network, options: Options, images: int, targets: int) -> _Passes:
    """The same where nothing is compacted, as on a GPU; of typical looks where it is screened."""
    levels = levels_run(network, options)
    if every_level(options, images):
        return _Passes(levels["fc"], levels["conv"], 1.0, 1.0)
    first = (targets + sum(run_at_every_level(images, targets, options.stop))) / images
    t, whole = TYPICAL[options.stop], TYPICAL_IMAGES
    fc = levels["fc"] * first + t.fc_images / whole + t.fc_whole * (1 - first)
    conv = t.conv_images / whole + t.conv_whole * (1 - first)
    return _Passes(min(fc, levels["fc"]), min(conv, levels["conv"]), 1.0, 1.0)
