"""Image runs of low precision at ImageNet's proportions, and that its circuits are float32's.

The problems of ``test_fpe.py``: made-up categories of 1,000 and the recorded real ones, both
stages, with rounding injected into every look that is not in float32.
``pytest -s bench/e2e/test_fpe_precision.py``; ``BENCH_FPE_CATEGORIES`` made-up ones (default 24).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from margins import STOPS
from test_fpe import CATEGORIES, THRESHOLD, nearest, real_categories
from thousand import category, moved
from torch import Tensor

from circuitcore.extraction.accuracy import SLACK, Judge, worth
from circuitcore.extraction.looks import as_in_float32
from circuitcore.extraction.screening import Rule, Screening
from circuitcore.records import Accuracy

# rounding error of a logit as a part of the logits' standard deviation (AlexNet's eight layers)
ERROR = {"float32": 0.0, "tf32": 0.0006, "bfloat16": 0.005}
MOST_RUNS, MOST_FLOAT32 = 1.05, 0.1  # of float32's image runs; of the runs


def look_at(rows: Tensor, error: float, random: np.random.Generator, runs: Counter[bool]):
    """A look at rows [L, N], rounded by ``error`` unless float32 is asked for; counts runs."""
    noise = torch.from_numpy(random.normal(0, 1, rows.shape)).float() * error * rows.std()
    rough = rows + noise

    def look(levels: Sequence[int], images: np.ndarray, precise: bool) -> Tensor:
        runs[precise] += len(levels) * len(images)
        return (rows if precise else rough)[list(levels)][:, torch.from_numpy(images)]

    return look


def swept(
    stages: Iterator[Tensor], judge: Judge, stop: str, bias: str, how: str, seed: int
) -> tuple[list[tuple[int, Accuracy]], Counter[bool]]:
    """Level and accuracy chosen at both stages, and image runs by whether in float32."""
    random = np.random.default_rng([seed, 7])
    reference = worth(judge.fitted(judge.unpruned[None], bias)[0], bias)
    rule = Rule(THRESHOLD * reference - SLACK, stop, bias, True, low=how != "float32", risk=1e-7)
    runs: Counter[bool] = Counter()
    found: list[tuple[int, Accuracy]] = []
    start, error = judge.unpruned, None
    rows = next(stages)
    while True:
        look = look_at(rows, ERROR[how], random, runs)
        own = Rule(**{**vars(rule), "at_once": not found})
        screening = Screening(judge, start, len(rows), look, own, start_error=error)
        chosen = screening.run()
        found.append((chosen, screening.judged[chosen].bounds.expected))
        if len(found) == 2:
            return found, runs
        rows = stages.send(chosen)
        start, error = screening.at(chosen), screening.error(chosen)


def made_up(seed: int) -> tuple[Judge, Iterator[Tensor]]:
    """A category of 1,000 and its stages: rows of the fc stage, then, sent a level, of conv."""
    random = np.random.default_rng([seed, 1000])
    found, real = category(random), real_categories()[seed % len(real_categories())]

    def stages() -> Iterator[Tensor]:
        rows = moved(random, found.unpruned, found.target, real.fc, real.target)
        level = yield rows
        behind = real.conv[nearest(list(real.conv), level)]
        yield moved(random, rows[level].double().numpy(), found.target, behind, real.target)

    return found.judge("other"), stages()


def recorded(place: int) -> tuple[Judge, Iterator[Tensor]]:
    """A recorded category and its stages."""
    real = real_categories()[place]
    margin, target = torch.from_numpy(real.margin).double(), torch.from_numpy(real.target)

    def stages() -> Iterator[Tensor]:
        level = yield torch.from_numpy(real.fc)
        near = nearest(list(real.conv), level)
        rows = torch.from_numpy(real.conv[near]).clone()
        rows[0] = torch.from_numpy(real.fc)[level]
        yield rows

    return Judge(margin, target, torch.from_numpy(real.fc[0]), "other"), stages()


@cache
def counted(kind: str, stop: str, bias: str, how: str) -> tuple[list, Counter[bool]]:
    """Circuits and image runs of all categories."""
    make, count = (made_up, CATEGORIES) if kind == "made up" else (recorded, len(real_categories()))
    runs: Counter[bool] = Counter()
    circuits = []
    for seed in range(count):
        judge, stages = make(seed)
        if worth(judge.fitted(judge.unpruned[None], bias)[0], bias) <= 0:
            continue
        found, own = swept(stages, judge, stop, bias, how, seed)
        circuits.append(found)
        runs += own
    return circuits, runs


@pytest.mark.parametrize("how", ["tf32", "bfloat16"])
@pytest.mark.parametrize("bias", ["matched", "exact", "none"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("kind", ["made up", "recorded"])
def test_low_precision(kind, stop, bias, how, capsys):
    """The circuits of float32; under a matched bias hardly an image is run twice."""
    wanted, plain = counted(kind, stop, bias, "float32")
    circuits, runs = counted(kind, stop, bias, how)
    ratio, part = runs.total() / plain[True], runs[True] / runs.total()
    with capsys.disabled():
        print(f"\n{kind}, {stop}, {bias}, {how}: {len(wanted)} categories, image runs "
              f"{runs[False]} low + {runs[True]} float32 ({part:.1%}), "
              f"{ratio:.3f} of {plain[True]}")  # fmt: skip
    assert circuits == wanted
    if (kind, bias) == ("made up", "matched"):
        assert ratio <= MOST_RUNS and part <= MOST_FLOAT32


@pytest.mark.parametrize("how", ["tf32", "bfloat16"])
def test_held_out(how, capsys):
    """20,000 images at a frozen bias: every prediction is float32's."""
    for seed in range(CATEGORIES):
        judge, stages = made_up(seed)
        rows, runs, bias = next(stages)[5:6], Counter[bool](), float(seed % 7 - 3)
        look = look_at(rows, ERROR[how], np.random.default_rng([seed, 3]), runs)
        low = torch.from_numpy(as_in_float32(look, judge, bias, low=True)).float()
        assert torch.equal(judge.predicted(low, bias), judge.predicted(rows[0], bias))
        assert runs[True] <= 0.1 * runs.total()
