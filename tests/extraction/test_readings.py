"""Several readings of the method on one scored category: what each finds alone, for less."""

from dataclasses import replace

import pytest

from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.stage import scored
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import PRESETS, Options
from circuitcore.progress import Silent

READINGS = ({}, PRESETS["strict"], PRESETS["vss"], PRESETS["paper-literal"])


@pytest.mark.parametrize("screen", ["off", "on"])
def test_shared_work_changes_no_circuit(screen):
    grid = {"levels": "linear:6", "screen": screen}
    options = Options(**grid)
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    unit = 4
    work = scored(prepared, unit, share=True)
    alone_work = shared_work = 0
    for reading in READINGS:
        own = replace(prepared, options=Options(**{**reading, **grid}))
        alone = extract_circuit(own, unit, "Coat")
        shared = extract_circuit(own, unit, "Coat", work=work)
        assert shared.record.circuit.kept_weights == alone.record.circuit.kept_weights
        assert shared.record.circuit.heldout == alone.record.circuit.heldout
        assert [s.chosen for s in shared.record.stages] == [s.chosen for s in alone.record.stages]
        assert all((shared.kept[n] == alone.kept[n]).all() for n in alone.kept)
        alone_work += alone.record.cost.multiply_adds
        shared_work += shared.record.cost.multiply_adds
        assert shared.record.cost.fpe >= 0
    assert shared_work < alone_work
