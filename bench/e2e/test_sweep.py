"""A category of a trained full-size AlexNet, by stage and end to end, against plain ways to do it.

Every contender must find the same circuit: same level, same kept weights, same accuracy at every
level it judged.  Whole size takes most of an hour on two cores; ``conftest.py`` names the
environment variables for a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from contenders import Curve, InPlace, Naive, assert_same, extract, reference_of, sweep
from torch import Tensor

from circuitcore.engine.executors import executor
from circuitcore.engine.footprint import FORWARD_CHUNK
from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.judging import judges
from circuitcore.extraction.stage import sweep_stage
from circuitcore.machine.chunks import in_chunks
from circuitcore.network.forward import Tally, forward
from circuitcore.scoring.levels import StageLevels, stage_levels
from circuitcore.scoring.scores import contributions

UNIT = 4  # Coat: neither the easiest category nor the hardest
NAIVE, IN_PLACE = "naive", "in place"
DENSE, OURS = "circuitcore --screen off", "circuitcore"
TARGETS = "end to end 3.5 x over naive with --screen off, 18 x with screening (float32)"


def screened(prepared: Prepared, screen: str) -> Prepared:
    return replace(prepared, options=replace(prepared.options, screen=screen))


def counted(prepared: Prepared, stage: str, multiply_adds: Mapping[str, int]) -> str:
    """Multiply-adds of ours against levels x one unpruned pass of the images, and the FPE."""
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction)
    stages = ("fc", "conv") if stage == "both" else (stage,)
    levels = sum(len(prepared.options.grid(each)) for each in stages)
    parts = [
        f"{name} {count / 1e9:.1f} ({count / once:.2f} FPE)"
        for name, count in multiply_adds.items()
    ]
    dense = f"{levels} levels x one unpruned pass {levels * once / 1e9:.1f} ({levels} FPE)"
    return "; ".join([*parts, dense]) + ", thousand million"


def about(prepared: Prepared, multiply_adds: Mapping[str, int]) -> dict[str, object]:
    """What the row is of, and ours in forward-pass equivalents."""
    once = prepared.runner.sizes.multiply_adds * len(prepared.extraction)
    shape = f"{len(prepared.extraction)} images of {prepared.extraction.pixels.shape[1:]}"
    done = multiply_adds.get(OURS, 0)
    return {"dtype": "float32", "shape": shape, "fpe": done / once, "multiply_adds": done}


def race_stage(
    race: Callable[..., object],
    prepared: Prepared,
    stage: str,
    fixed: Mapping[str, Tensor],
    start: Tensor,
    assigned: StageLevels,
    rounds: int,
    more: Mapping[str, tuple[Callable[[], object], float]] | None = None,
) -> object:
    """Race one stage, assert that all find the same curve, and print what was counted."""
    judge, _ = judges(prepared, UNIT)
    reference = reference_of(prepared, UNIT)
    found: dict[str, Curve] = {}
    executed: dict[str, int] = {}
    note: dict[str, object] = {"images": len(prepared.extraction)}

    def plain(name: str, contender: type[Naive] | type[InPlace]) -> Callable[[], None]:
        def run() -> None:
            level = contender(prepared, UNIT).stage(assigned, fixed)
            found[name] = sweep(prepared, assigned, judge, level, start, reference)

        return run

    def ours(name: str, screen: str) -> Callable[[], None]:
        own = screened(prepared, screen)

        def run() -> None:
            tally = Tally()
            swept = sweep_stage(
                own,
                executor(own.runner, own.extraction, UNIT, assigned, fixed, tally),
                judge,
                start=start,
                reference=reference,
            )
            found[name], executed[name] = Curve.of(swept.record), tally.multiply_adds
            note["multiply-adds"] = counted(own, stage, executed)
            note.update(about(own, executed))

        return run

    more = more or {}
    result = race(
        {
            **contenders(ours, plain),
            **{name: function for name, (function, _) in more.items()},
        },
        ours=OURS,
        rounds=rounds,
        once=(NAIVE, IN_PLACE),
        scale={name: factor for name, (_, factor) in more.items()},
        note=note,
    )
    same_curves(found)
    return result


def contenders(
    ours: Callable[[str, str], Callable[[], None]],
    plain: Callable[[str, type[Naive] | type[InPlace]], Callable[[], None]],
) -> dict[str, Callable[[], None]]:
    return {
        OURS: ours(OURS, "on"),
        DENSE: ours(DENSE, "off"),
        NAIVE: plain(NAIVE, Naive),
        IN_PLACE: plain(IN_PLACE, InPlace),
    }


def same_curves(found: Mapping[str, Curve]) -> None:
    for name, curve in found.items():
        assert_same(curve, found[NAIVE], every_level=name != OURS)


def report(capsys, benchmark, result, names: tuple[str, ...]) -> None:
    """Print and keep how ours with ``--screen off`` compares to each of ``names``."""
    ratios = {name: result.ratio(name, DENSE) for name in names}
    benchmark.extra_info["ratio to screen off"] = ratios
    with capsys.disabled():
        for name, value in ratios.items():
            print(f"  {DENSE} over {name}: {value:.2f} x")


def test_fc_stage(race, alexnet_prepared, images_per_category, benchmark, capsys):
    """32 levels, 1,000 images, from the same scores and the same cached level 0."""
    prepared = alexnet_prepared(images_per_category)
    judge, _ = judges(prepared, UNIT)
    assigned = levels_of(prepared, "fc")
    result = race_stage(race, prepared, "fc", {}, judge.unpruned, assigned, rounds=3)
    report(capsys, benchmark, result, (NAIVE, IN_PLACE))


def test_conv_stage(race, alexnet_prepared, images_per_category, benchmark, capsys):
    """16 levels, 200 images, behind the fc circuit that the fc stage chooses."""
    prepared = alexnet_prepared(min(images_per_category, 20))
    judge, _ = judges(prepared, UNIT)
    reference = reference_of(prepared, UNIT)
    fc = levels_of(prepared, "fc")
    run = InPlace(prepared, UNIT).stage(fc, {})
    chosen = sweep(prepared, fc, judge, run, judge.unpruned, reference)
    assigned = levels_of(prepared, "conv")
    limit = "levels run x one unpruned forward (channels last)"

    @torch.inference_mode()
    def unpruned() -> None:
        def run(part: slice) -> None:
            values = {"input": prepared.runner.batch(prepared.extraction, part)}
            forward(prepared.runner.network, values, [prepared.runner.network.last])

        in_chunks(len(prepared.extraction), FORWARD_CHUNK, run)

    more = {limit: (unpruned, len(assigned.pruned) - 1.0)}
    fixed, start = fc.kept(chosen.level), chosen.activation
    result = race_stage(race, prepared, "conv", fixed, start, assigned, rounds=3, more=more)
    report(capsys, benchmark, result, (NAIVE, IN_PLACE, limit))


def test_category(race, alexnet_prepared, images_per_category, benchmark, capsys):
    """One category end to end: scores, both sweeps, and the circuit on held-out images."""
    prepared = alexnet_prepared(images_per_category)
    found: dict[str, dict[str, Curve]] = {}
    executed: dict[str, int] = {}
    note: dict[str, object] = {"images": len(prepared.extraction), "targets": TARGETS}

    def plain(name: str, contender: type[Naive] | type[InPlace]) -> Callable[[], None]:
        def run() -> None:
            found[name] = extract(prepared, UNIT, contender)

        return run

    def ours(name: str, screen: str) -> Callable[[], None]:
        own = screened(prepared, screen)

        def run() -> None:
            record = extract_circuit(own, UNIT, "Coat").record
            found[name] = {stage.stage: Curve.of(stage) for stage in record.stages}
            executed[name] = record.cost.multiply_adds
            note["multiply-adds"] = counted(own, "both", executed)
            note.update(about(own, executed))

        return run

    result = race(
        contenders(ours, plain),
        ours=OURS,
        rounds=1,
        note=note,
    )
    for stage in ("fc", "conv"):
        same_curves({name: curves[stage] for name, curves in found.items()})
    report(capsys, benchmark, result, (NAIVE, IN_PLACE))


def levels_of(prepared: Prepared, stage: str) -> StageLevels:
    found = contributions(prepared.runner.network, prepared.scoring_images(UNIT), UNIT)
    return stage_levels(prepared.runner.network, stage, found, UNIT, prepared.options)
