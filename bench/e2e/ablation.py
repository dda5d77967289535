"""What ablation to the mean costs beside ablation to zero, of the bundled network.

``python bench/e2e/ablation.py``: seconds and multiply-adds of all levels of each stage on all
extraction images, three categories, with the same masks; the least of several rounds in turn.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from circuitcore.engine.prepare import Prepared, prepare  # noqa: E402
from circuitcore.extraction.stage import scored, stage_executors  # noqa: E402
from circuitcore.inputs.read import read_inputs  # noqa: E402
from circuitcore.machine.device import machine  # noqa: E402
from circuitcore.options import Options  # noqa: E402
from circuitcore.progress import Silent  # noqa: E402

ROUNDS, UNITS, FIXED = 5, (1, 5, 8), 12  # the fc level behind which convolutions are swept
WAYS = ("zero", "mean")


def prepared(ablate: str) -> Prepared:
    """The bundled problem, every level run on every image."""
    options = Options(ablate=ablate, screen="off", device="cpu")
    return prepare(read_inputs(options), options, machine(options), Silent())


def swept(problem: Prepared, unit: int) -> dict[str, tuple[float, int]]:
    """Seconds and multiply-adds of each stage of one category."""
    work, kept = scored(problem, unit), dict[str, torch.Tensor]()
    found, every = {}, np.arange(len(problem.extraction))
    for runs in stage_executors(problem, unit, work, kept):
        before, began = work.tally.multiply_adds, time.perf_counter()
        with torch.inference_mode():
            runs.look(range(1, len(runs.assigned.pruned)), every, True)
        spent = time.perf_counter() - began
        found[runs.assigned.stage] = spent, work.tally.multiply_adds - before
        kept |= runs.assigned.kept(FIXED)
    return found


def main() -> None:
    """Print a line a stage."""
    problems = {ablate: prepared(ablate) for ablate in WAYS}
    seconds: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    work: dict[tuple[str, str, int], int] = {}
    for _ in range(ROUNDS):
        for unit in UNITS:
            for ablate, problem in problems.items():
                for stage, (spent, executed) in swept(problem, unit).items():
                    seconds[ablate, stage, unit].append(spent)
                    work[ablate, stage, unit] = executed
    for stage in ("fc", "conv"):
        zero, mean = (sum(min(seconds[a, stage, u]) for u in UNITS) for a in WAYS)
        before, after = (sum(work[a, stage, u] for u in UNITS) for a in WAYS)
        print(
            f"{stage}: {zero:.3f} s to zero, {mean:.3f} s to the mean: {mean / zero:.2f} x; "
            f"multiply-adds {after / before:.4f} x"
        )


if __name__ == "__main__":
    main()
