"""What the host does for a category of 1,000: looks at the device, and seconds of its own.

The made-up categories of ``test_fpe.py``, in bfloat16 and with the default options, their looks
counted and not run: `circuitcore.extraction.planning.predict.TYPICAL`.  The rest is host work on
20,000 and 30,000 images: `Screening` without its looks, judging beside it (what the thread that
commits does of it apart), and a random mask drawn for AlexNet's 57 million relevant weights.
``python bench/e2e/looks.py``; ``BENCH_FPE_CATEGORIES`` made-up ones (default 24).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from statistics import mean
from types import SimpleNamespace

import numpy as np
import torch
from margins import STOPS
from test_fpe import CATEGORIES, THRESHOLD
from test_fpe_precision import ERROR, look_at, made_up

from circuitcore.engine.splits import Split
from circuitcore.extraction.accuracy import SLACK, worth
from circuitcore.extraction.circuit import _tested
from circuitcore.extraction.floor import at_random
from circuitcore.extraction.judging import empty_circuit, judges, unpruned_baseline
from circuitcore.extraction.looks import as_in_float32
from circuitcore.extraction.screening import Rule, Screening
from circuitcore.options import Options

HELDOUT, WEIGHTS, KEPT = 30_000, 56_998_720, 0.05
REPEATS = 3  # the least of their times counts: what else runs on the machine can only add to it


class Counted(Screening):
    """Counts its looks: (part, levels, images, in float32?); ``own``: seconds beside them."""

    def __init__(self, judge, start, count, look, rule, **more) -> None:
        self.part, self.looking, self.log = "sweep", 0.0, []

        def counting(levels, images, precise):
            began = time.thread_time()
            found = look(levels, images, precise)
            self.looking += time.thread_time() - began
            self.log.append((self.part, len(levels), len(images), precise))
            return found

        began = time.thread_time()
        super().__init__(judge, start, count, counting, rule, **more)
        self.own = time.thread_time() - began

    def run(self) -> int:
        began = time.thread_time()
        chosen = super().run()
        self.own += time.thread_time() - began - self.looking
        return chosen

    def _whole(self, t: int) -> bool:
        self.part = "certify"
        held = super()._whole(t)
        self.part = "sweep"
        return held


def swept(seed: int, how: str, stop: str) -> dict[str, Counted] | None:
    """Both stages of one category, None where the unpruned network does not get it right."""
    judge, stages = made_up(seed)
    reference = worth(judge.fitted(judge.unpruned[None], "matched")[0], "matched")
    if reference <= 0:
        return None
    random, start, error = np.random.default_rng([seed, 7]), judge.unpruned, None
    found: dict[str, Counted] = {}
    rows = next(stages)
    for stage in ("fc", "conv"):
        rule = Rule(THRESHOLD * reference - SLACK, stop, "matched", stage == "fc",
                    low=how != "float32", risk=1e-7)  # fmt: skip
        look = look_at(rows, ERROR[how], random, Counter())
        runs = [
            Counted(judge, start, len(rows), look, rule, start_error=error) for _ in range(REPEATS)
        ]
        (chosen,) = {each.run() for each in runs}
        screening = found[stage] = min(runs, key=lambda each: each.own)
        if stage == "fc":
            start, error = screening.at(chosen), screening.error(chosen)
            rows = stages.send(chosen)
    return found


def held_out(seed: int, how: str) -> tuple[int, int]:
    """Images run again in float32 on 20,000 at a frozen bias, and looks in float32."""
    judge, stages = made_up(seed)
    rows, runs = next(stages)[5:6], Counter[bool]()
    inner = look_at(rows, ERROR[how], np.random.default_rng([seed, 3]), runs)
    looked: list[bool] = []

    def look(levels, images, precise):
        looked.append(precise)
        return inner(levels, images, precise)

    low = how != "float32"
    as_in_float32(look, judge, float(seed % 7 - 3), low=low)
    return runs[True] * low, sum(looked) * low


def judging() -> tuple[float, float]:
    """Seconds of judging a category beside its screening: before it, and behind the next one.

    Before it baselines, on both sets; behind it the held-out test with its intervals.
    """
    random = torch.Generator().manual_seed(0)

    def split(images: int, each: int) -> Split:
        labels = torch.arange(images) // each
        logits = torch.randn(images, 1000, generator=random)
        logits[torch.arange(images), labels] += 3
        return Split(np.zeros((images, 0)), labels, logits, {})

    model = SimpleNamespace(network=SimpleNamespace(biases={}, last="last"))
    prepared: SimpleNamespace = SimpleNamespace(
        extraction=split(20_000, 20), heldout=split(HELDOUT, 30), options=Options(),
        inputs=SimpleNamespace(model=model),
    )  # fmt: skip
    prepared.extraction.largest, prepared.heldout.largest  # noqa: B018  once a run

    def once(unit: int) -> tuple[float, float]:
        began = time.thread_time()
        judge, heldout = judges(prepared, unit)
        unpruned = unpruned_baseline(judge, heldout, "matched")
        empty = empty_circuit(prepared, unit, judge, heldout)
        between = time.thread_time()
        fitted = unpruned.extraction_biased
        _tested(prepared, unit, heldout, heldout.unpruned, fitted, unpruned, empty)
        return between - began, time.thread_time() - between

    each = [[once(unit) for _ in range(REPEATS)] for unit in range(CATEGORIES)]
    before, behind = np.min(each, axis=1).mean(axis=0)
    return float(before), float(behind)


def table(found: list[dict[str, Counted]]) -> Iterator[str]:
    """Looks and image runs a category, by part, stage and precision."""
    runs: dict[tuple[str, str, str, bool], list[int]] = defaultdict(lambda: [0, 0])
    for stages in found:
        for stage, screening in stages.items():
            for part, levels, images, precise in screening.log:
                where = runs[part, stage, "many" if levels > 1 else "one", precise]
                where[0] += 1
                where[1] += levels * images
    for (part, stage, levels, precise), (looks, images) in sorted(runs.items()):
        what = f"{part:8} {stage:5} {levels:5} {'float32' if precise else 'low':8}"
        yield f"{what}{looks / len(found):8.2f} looks {images / len(found):8.0f} images a category"


def main() -> None:
    torch.set_num_threads(1)
    for stop, how in product(STOPS, ("bfloat16", "tf32", "float32")):
        found: list[dict[str, Counted]] = []
        seed = 0
        while len(found) < CATEGORIES:
            if (made := swept(seed, how, stop)) is not None:
                found.append(made)
            seed += 1
        print(f"{stop}, {how}: {CATEGORIES} categories")
        print("\n".join(table(found)))
        again, looks = np.mean([held_out(k, how) for k in range(CATEGORIES)], axis=0)
        print(f"held out: {again:.0f} of 20,000 images again in float32, {looks:.2f} looks")
        own = mean(sum(each.own for each in stages.values()) for stages in found)
        print(f"host, screening: {1000 * own:.1f} ms a category")
    before, behind = judging()
    print(f"host, judging: {1000 * before:.1f} ms a category")
    print(f"host, held-out test on the thread that commits: {1000 * behind:.1f} ms a category")
    began = time.thread_time()
    at_random(WEIGHTS, round(KEPT * WEIGHTS), np.random.default_rng(0))
    print(f"host, a random mask: {1000 * (time.thread_time() - began):.1f} ms")


if __name__ == "__main__":
    main()
