"""How the work of a category grows with levels and with images: counted, not timed.

On the bundled network and its images, so it takes seconds and gives the same numbers everywhere
the CPU path runs.  A power of 1 is linear; what keeps it from 1 is written beside each table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from contenders import reference_of
from torch import Tensor

from circuitcore.engine.executors import executor
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.judging import judges
from circuitcore.extraction.stage import sweep_stage
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

LEVELS = (8, 16, 32, 64, 128)
IMAGES = (5, 10, 20)
CATEGORIES = (1, 6)  # Trouser is easy, Shirt is hard
WHY = {
    "levels": (
        "n levels cost n - 1 passes, and the one left out is the densest (conv above 1, towards "
        "1); the first fc layer may run as differences between levels, which add up to one pass "
        "however many levels there are (fc below 1, until the layers behind it outweigh it)"
    ),
    "images": (
        "each level's work is the same for every image; but more images move the fc level chosen, "
        "and with it what the conv stage starts from"
    ),
}


def work(
    screen: str, stop: str, units: Sequence[int] = CATEGORIES, **options: Any
) -> tuple[int, int, int]:
    """(fc, conv, one unpruned pass) multiply-adds, summed over the categories ``units``."""
    chosen = Options(screen=screen, stop=stop, device="cpu", heldout_images=5, **options)
    prepared = prepare(read_inputs(chosen), chosen, machine(chosen), Silent())
    tallies = {"fc": Tally(), "conv": Tally()}
    for unit in units:
        judge, _ = judges(prepared, unit)
        found = contributions(prepared.runner.network, prepared.scoring_images(unit), unit)
        fixed: dict[str, Tensor] = {}
        start = judge.unpruned
        for stage, tally in tallies.items():
            assigned = stage_levels(prepared.runner.network, stage, found, unit, chosen)
            swept = sweep_stage(
                prepared,
                executor(prepared.runner, prepared.extraction, unit, assigned, fixed, tally),
                judge,
                start=start,
                reference=reference_of(prepared, unit),
            )
            fixed, start = assigned.kept(swept.level), swept.activation
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction) * len(units)
    return tallies["fc"].multiply_adds, tallies["conv"].multiply_adds, once


def table(what: str, sizes: Sequence[int], rows: Sequence[tuple[int, int, int]]) -> str:
    """Multiply-adds in millions, FPE, and the local power of growth of each stage."""
    lines = [f"  {what:>7}  fc, millions  conv, millions    FPE  power fc  power conv"]
    for k, (size, (fc, conv, once)) in enumerate(zip(sizes, rows, strict=True)):
        line = f"  {size:7}  {fc / 1e6:12.1f}  {conv / 1e6:14.1f}  {(fc + conv) / once:5.2f}"
        if k:
            for now, before in zip(rows[k][:2], rows[k - 1][:2], strict=True):
                step = math.log(size / sizes[k - 1])
                line += f"  {math.log(now / before) / step if now and before else math.nan:8.2f}"
        lines.append(line)
    return "\n".join([*lines, f"  not linear because: {WHY[what]}"])


@pytest.mark.parametrize(
    ("screen", "stop"),
    [("off", "first-crossing"), ("on", "first-crossing"), ("on", "sparsest-above")],
)
def test_levels(screen, stop, capsys):
    rows = [work(screen, stop, levels=str(n), extraction_images=5) for n in LEVELS]
    show(capsys, f"--screen {screen} --stop {stop}", table("levels", LEVELS, rows))
    for (count, (fc, conv, once)), (_, more) in pairwise(zip(LEVELS, rows, strict=True)):
        assert 0 < fc + conv <= (count - 1) * 2 * once  # never more than every level run whole
        if screen == "off":
            assert more[0] >= fc and more[1] >= conv


@pytest.mark.parametrize("screen", ["off", "on"])
def test_images(screen, capsys):
    stop = "first-crossing"
    rows = [work(screen, stop, levels="16", extraction_images=n) for n in IMAGES]
    show(capsys, f"--screen {screen} --stop {stop}", table("images", IMAGES, rows))
    for _, _, once in rows:
        assert once > 0


def show(capsys, title: str, text: str) -> None:
    with capsys.disabled():
        print(f"\n{len(CATEGORIES)} categories of the bundled network, {title}\n{text}")
