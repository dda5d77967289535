"""Plans against what is executed: exact after scoring, an upper bound before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.planning.plan import exact_plan, plan
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent


def prepared_with(**changes):
    options = Options(**{"levels": "9", "screen": "off", "extraction_images": 10, **changes})
    return prepare(read_inputs(options), options, machine(options), Silent())


def planned_for(options, **more):
    wanted = ["Trouser", "Coat"]
    return plan(read_inputs(options), options, machine(options), wanted, Silent(), **more)


@pytest.mark.parametrize(
    ("unit", "granularity", "ablate"),
    [(u, g, "zero") for g in ("weight", "kernel") for u in (1, 4)] + [(1, "weight", "mean")],
)
def test_after_scoring_the_plan_is_what_is_executed(unit, granularity, ablate):
    """Counted from the operands of every product, stage by stage, level by level."""
    prepared = prepared_with(granularity=granularity, ablate=ablate)
    planned = exact_plan(prepared, unit, "it")
    record = extract_circuit(prepared, unit, "it").record
    assert [s.multiply_adds for s in planned.stages] == [s.multiply_adds for s in record.stages]
    assert planned.fpe == record.cost.fpe_sweep and record.cost.fpe_certify == 0
    assert sum(s.multiply_adds for s in record.stages) == planned.multiply_adds
    for plan_of, stage in zip(planned.stages, record.stages, strict=True):
        work = plan_of.by_level()
        assert list(work) == [level.level for level in stage.levels[1:]]
        if plan_of.stage == "conv":  # nested: a sparser level never costs more
            assert list(work.values()) == sorted(work.values(), reverse=True)


def test_chunks_change_neither_plan_nor_circuit():
    prepared = prepared_with()
    sizes = replace(prepared.runner.sizes, memory=40 * prepared.runner.sizes.feature_bytes)
    small = replace(prepared, runner=replace(prepared.runner, sizes=sizes))
    assert small.runner.feature_chunk(8) < len(prepared.extraction) / 3
    whole = extract_circuit(prepared, 1, "it").record.circuit
    for each in (prepared, small):
        planned = exact_plan(each, 1, "it")
        record = extract_circuit(each, 1, "it").record
        assert planned.fpe == record.cost.fpe_sweep
        circuit = record.circuit
        assert circuit.bias == pytest.approx(whole.bias, abs=1e-5)  # rounds with the chunk
        assert circuit.kept_weights == whole.kept_weights
        assert (circuit.heldout.hit, circuit.heldout.csa) == (whole.heldout.hit, whole.heldout.csa)


@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
@pytest.mark.parametrize("screen", ["off", "on"])
def test_before_scoring_the_plan_bounds_it(screen, stop):
    options = Options(levels="9", screen=screen, stop=stop, extraction_images=10)
    planned = planned_for(options)
    assert planned.exact == [] and planned.categories == 2
    assert 0 < planned.fpe <= planned.fpe_upper
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    for unit in (1, 4):
        assert extract_circuit(prepared, unit, "it").record.cost.fpe <= planned.fpe_upper


@pytest.mark.parametrize("needs_all", [{"bias": "sgd"}, {}])
def test_a_plan_knows_when_every_level_is_run(needs_all):
    """A trained bias has no bounds to stop by, whatever ``--screen`` says; an exact one has."""
    options = Options(levels="5", extraction_images=4, screen="on", **needs_all)
    every = planned_for(Options(levels="5", extraction_images=4, screen="off", **needs_all))
    assert (planned_for(options).fpe == every.fpe) == bool(needs_all)


def test_exact_plans_are_printed_and_averaged():
    options = Options(levels="5", extraction_images=10)
    planned = planned_for(options, exact=True)
    assert [each.category for each in planned.exact] == ["Trouser", "Coat"]
    (heldout,) = [step for step in planned.steps if step.what == "held-out test"]
    swept = sum(each.fpe for each in planned.exact) / 2
    assert swept < planned.fpe < swept + heldout.fpe


def test_what_runs_a_stage_is_freed_at_once():
    """No cycle keeps weights and plans until the collector comes by."""
    import gc
    import weakref

    from circuitcore.engine.executors import executor
    from circuitcore.network.forward import Tally
    from circuitcore.scoring.levels import stage_levels
    from circuitcore.scoring.scores import contributions

    prepared = prepared_with()
    found = contributions(prepared.runner.network, prepared.scoring_images(1), 1)
    gc.disable()
    try:
        for stage in ("fc", "conv"):
            assigned = stage_levels(prepared.runner.network, stage, found, 1, prepared.options)
            runs = executor(prepared.runner, prepared.extraction, 1, assigned, {}, Tally())
            runs.plan(range(1, 9), 5)
            runs.look([3], prepared.extraction.labels.nonzero()[:7, 0].numpy(), True)
            gone = weakref.ref(runs)
            del runs
            assert gone() is None
    finally:
        gc.enable()


def test_the_levels_of_one_category_fill_a_gpu():
    """Why categories are not batched: one launch of AlexNet's fc stage has more programs than SMs.

    At ImageNet's proportions a level is judged on 220 images at least; 60 are enough for this.
    """
    from circuitcore.kernels.masked.tiles import masked_tile

    multiprocessors, levels, images, rows = 148, 31, 60, 4096
    for dtype in ("fp32", "bf16"):
        tile = masked_tile(dtype, images, "sm_100")
        programs = levels * -(-rows // tile.rows) * -(-images // tile.batch)
        assert programs > multiprocessors, (dtype, programs)
