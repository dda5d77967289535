"""One category of a thousand, AlexNet at 224 pixels: launches, waits and bytes within a budget.

Counted on the second category of a run, when every graph is captured; nothing is computed.
"""

import numpy as np
import pytest
import torch
from pretend import thousand_way
from pretend.device import pretended

from circuitcore.analysis.resampling.drawing import Drawing
from circuitcore.analysis.resampling.run import count, drawn_circuit
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.stage import ranked
from circuitcore.options import Options
from circuitcore.runs.circuitfile import packed_bits
from circuitcore.scoring.scores import contributions

MB = 10**6
# most of a category: of launches outside graphs, waits, bytes either way, replays
BUDGET = {
    "float32": {"launches": 245, "syncs": 15, "bytes": 8.4 * MB, "replays": 111},
    "bfloat16": {"launches": 259, "syncs": 20, "bytes": 8.4 * MB, "replays": 117},
}


@pytest.mark.parametrize("dtype", BUDGET)
def test_a_category_of_a_thousand(dtype, monkeypatch):
    found, heldout = thousand_way.made_up(seed=0)
    network = thousand_way.alexnet()
    with pretended(host=lambda site, ghost: torch.zeros(ghost.shape, dtype=ghost.dtype)) as cuda:
        run = thousand_way.prepared(found, heldout, network, dtype=dtype)
        thousand_way.answered(monkeypatch, found, seed=0)
        for _ in range(2):
            cuda.counts.clear()
            work = ranked(run, thousand_way.UNIT)
            circuit = extract_circuit(run, thousand_way.UNIT, "made up", None, work)
            packed_bits(circuit.kept)
        totals, table = cuda.counts.totals(), cuda.counts.table(30)
    counted = {
        "launches": totals["torch launches"] + totals["triton launches"],
        "syncs": totals["syncs"],
        "bytes": totals["bytes to device"] + totals["bytes to host"],
        "replays": totals["replays"],
    }
    assert not totals["captures"], table
    over = {name: count for name, count in counted.items() if count > BUDGET[dtype][name]}
    assert not over, f"{counted}\n{table}"
    assert [stage.chosen for stage in circuit.record.stages] == [4, 4]
    # no image crosses: numbers of images up, activations down, masks as bits
    assert totals["bytes to device"] <= MB
    assert np.isclose(circuit.record.cost.fpe_heldout, 1.5, rtol=0.05)


def test_a_circuit_from_scoring_images_drawn_again():
    network = thousand_way.alexnet()
    with pretended(host=lambda site, ghost: torch.zeros(ghost.shape, dtype=ghost.dtype)) as cuda:
        network = network.to("cuda:0")
        images = torch.zeros(32, 3, 224, 224).to("cuda:0")
        found = contributions(network, images, thousand_way.UNIT)
        pruned = {stage: round(0.6 * network.relevant(stage)) for stage in network.stages}
        shapes = {name: network.relevant_shape(name) for name in network.layers()}
        counts = {n: torch.zeros(s, dtype=torch.uint8, device="cuda:0") for n, s in shapes.items()}
        bits = {n: np.zeros((1, -(-np.prod(s) // 8)), np.uint8) for n, s in shapes.items()}
        draw = Drawing(1, 32, 4, None).draws(0)[0]
        cuda.counts.clear()
        kept = drawn_circuit(network, found, thousand_way.UNIT, pruned, Options(), draw)
        count(kept, counts, bits, 0)
        totals, table = cuda.counts.totals(), cuda.counts.table(30)
    assert totals["torch launches"] + totals["triton launches"] <= 280, table
    assert totals["syncs"] <= 4, table
    assert totals["bytes to device"] + totals["bytes to host"] <= 7.2 * MB, table
