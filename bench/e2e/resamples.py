"""What drawing scoring images again costs, of an AlexNet-sized category.

``python bench/e2e/resamples.py``: seconds of one resample (an exact selection at one level, counted
and packed) against one ranking of the sweep (the selection of its 31 levels), side by side in turn;
the overlaps of all pairs beside them; and the memory a resample adds, in bytes a weight.
``--target h100`` predicts a GPU's seconds from counts (`tests/pretend/test_budget.py` holds them),
and measures nothing.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torchvision.models import alexnet  # noqa: E402

from circuitcore.analysis.resampling.drawing import Drawing
from circuitcore.analysis.resampling.run import count, drawn_circuit  # noqa: E402
from circuitcore.extraction.planning.predict import SELECTION  # noqa: E402
from circuitcore.kernels.overlap.operation import overlap_cost, overlap_counts_mapped  # noqa: E402
from circuitcore.machine.scratch import Scratch  # noqa: E402
from circuitcore.machine.state import undisturbed  # noqa: E402
from circuitcore.machine.target import Work, kernel, target_of  # noqa: E402
from circuitcore.network.trace import trace  # noqa: E402
from circuitcore.options import Options  # noqa: E402
from circuitcore.scoring.levels import stage_levels  # noqa: E402
from circuitcore.scoring.scores import Contribution, contributions  # noqa: E402

ROUNDS, RESAMPLES, UNIT = 7, 100, 1
KEPT = {"fc": 0.1, "conv": 0.6}


LAUNCHES, SYNCS = 280, 4  # of one resample on a GPU
PASSES = 8 * SELECTION + 1 + 3 + 2  # bytes a weight: selection, level, counted, packed


def predict(name: str) -> None:
    """Print what a resample and the overlaps take on a device that need not be here."""
    target, weights = target_of(name), 56_998_592
    bits, masks = -(-weights // 8), RESAMPLES + 1
    one = kernel(target, 0, PASSES * weights)
    one += Work(launches=LAUNCHES, syncs=SYNCS, to_host=bits)
    moved, words = overlap_cost(masks, bits)
    # masks go there and back again; a word takes some four instructions of 32 lanes
    both = kernel(target, 0, moved) + Work(to_device=masks * bits, syncs=1)
    said = "predicted from counts, not measured"
    print(f"a resample {1e3 * one.seconds(target):.2f} ms, {RESAMPLES} of them "
          f"{RESAMPLES * one.seconds(target):.2f} s ({name}, {said})")  # fmt: skip
    print(f"overlaps of all pairs {both.seconds(target):.2f} s without {words:.3g} word "
          f"operations ({name}, {said})")  # fmt: skip


def main() -> None:
    """Print the figures."""
    if "--target" in sys.argv:
        predict(sys.argv[sys.argv.index("--target") + 1])
        return
    torch.manual_seed(0)
    network, options = trace(alexnet().eval()), Options()
    found = contributions(network, torch.randn(32, 3, 224, 224), UNIT)
    relevant = network.relevant()
    pruned = {s: round((1 - kept) * network.relevant(s)) for s, kept in KEPT.items()}
    draws = Drawing(RESAMPLES, 32, 4, None).draws(0)
    scratch, counts, bits = Scratch(), {}, {}
    for name in network.layers():
        shape = network.relevant_shape(name)
        counts[name] = torch.zeros(shape, dtype=torch.uint8)
        bits[name] = scratch.array(name, (RESAMPLES, -(-counts[name].numel() // 8)), np.dtype("u1"))
    ranked: list[float] = []
    resampled: list[float] = []
    grown = 0
    for place in range(RESAMPLES):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        kept = drawn_circuit(network, found, UNIT, pruned, options, draws[place])
        count(kept, counts, bits, place)
        resampled.append(time.perf_counter() - start)
        grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        del kept
        if place < ROUNDS:
            four = {n: Contribution(c.weight, c.x[:4], c.g[:4]) for n, c in found.items()}
            start = time.perf_counter()
            for stage in network.stages:
                stage_levels(network, stage, four, UNIT, options)
            ranked.append(time.perf_counter() - start)
    start = time.perf_counter()
    for name in network.layers():
        overlap_counts_mapped(list(bits[name]))
    pairs = time.perf_counter() - start
    one, whole = (statistics.median(each[1:]) for each in (resampled, ranked))
    print(f"{relevant:,} weights, {RESAMPLES} resamples, {torch.get_num_threads()} threads")
    print(f"a resample {one:.2f} s, a ranking of 31 levels {whole:.2f} s: {one / whole:.2f}")
    print(f"all of them {sum(resampled):.0f} s, {sum(resampled) / whole:.0f} rankings")
    print(f"overlaps of all pairs {pairs:.1f} s")
    print(f"memory that a resample added: {1024 * grown / relevant:.2f} bytes a weight")


if __name__ == "__main__":
    with undisturbed():
        main()
