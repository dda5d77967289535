"""What a look is said to launch is what a pretended device counts, on the bundled network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretend.device import pretended

from circuitcore.engine import resident
from circuitcore.engine.counting import Counting
from circuitcore.engine.passes import circuit_pass
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.stage import ranked, stage_executors
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.machine.target import TARGETS, Work
from circuitcore.options import Options
from circuitcore.progress import Silent

FC = ([1, 2, 3], 100), ([4], 300)
CONV = ([1, 2, 3], 100), ([4], 300)


def counted(counts):
    """What a pretended device counted, as `Work` has it."""
    totals = counts.totals()
    return Work(
        launches=totals["torch launches"] + totals["triton launches"],
        replays=totals["replays"],
        replayed=totals["replayed launches"],
        syncs=totals["syncs"],
        to_device=totals["bytes to device"],
        to_host=totals["bytes to host"],
    )


def same(said, found):
    names = ("launches", "replays", "replayed", "syncs", "to_device", "to_host")
    assert {n: getattr(said, n) for n in names} == {n: getattr(found, n) for n in names}


@torch.inference_mode()
def looked(runs, levels, images, precise):
    runs.look(levels, np.arange(images), precise)


def of(prepared, precision):
    runner, pixels = prepared.runner, prepared.extraction.pixels
    images = len(prepared.extraction) + len(prepared.heldout)
    return Counting(
        runner.network, pixels.shape[1:], runner.sizes, images, TARGETS["h100"], precision
    )


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("stays", [True, False])
def test_looks(precision, precise, stays, monkeypatch):
    """Every launch, replay, synchronisation and byte of looks at both stages, and held out."""
    asked = {"precision": "tf32"} if precision == "tf32" else {"dtype": precision}
    options = Options(device="cuda:0", extraction_images=30, heldout_images=20, levels="9", **asked)
    monkeypatch.setattr(resident, "SHARE", 0.75 * stays)  # images that stay on the device, or not
    with pretended() as cuda:
        on = machine(options)
        prepared = prepare(read_inputs(options), options, on, Silent())
        counting, kept = of(prepared, precision), {}
        work = ranked(prepared, 1)
        assert bool(prepared.runner.sizes.resident) == stays
        for runs in stage_executors(prepared, 1, work, kept):
            fc = runs.assigned.stage == "fc"
            for levels, images in FC if fc else CONV:
                looked(runs, levels, images, precise)  # captures what there is to capture
                cuda.counts.clear()
                looked(runs, levels, images, precise)
                count = counting.chained if fc else counting.replayed
                same(count(len(levels), images, precise), counted(cuda.counts))
            kept |= runs.assigned.kept(4)
        of_circuit = prepared.runner, prepared.heldout, 1, kept, None, precise
        circuit_pass(*of_circuit)(np.arange(100))
        cuda.counts.clear()
        circuit_pass(*of_circuit, early_whole=False)(np.arange(100))
        same(
            counting.held(precise) + counting.replayed(1, 100, precise, written=False),
            counted(cuda.counts),
        )


def test_scoring():
    """Launches and waits of scoring and ranking, within a tenth: parts of it depend on ties."""
    from circuitcore.extraction.planning.predict import _scored

    options = Options(device="cuda:0", extraction_images=30, heldout_images=20, levels="9")
    with pretended() as cuda:
        prepared = prepare(read_inputs(options), options, machine(options), Silent())
        ranked(prepared, 1)
        cuda.counts.clear()
        ranked(prepared, 1)
        said, found = _scored(of(prepared, "bfloat16"), options), counted(cuda.counts)
    assert said.replayed == pytest.approx(found.replayed, rel=0.1)
    assert (said.launches, said.syncs, said.replays) == (found.launches, found.syncs, 1)
