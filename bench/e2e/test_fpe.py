"""What screening costs at ImageNet's proportions, in forward-pass equivalents: counted, not timed.

The levels of made-up categories of 1,000 (`thousand.py`: 20 target images in 20,000) are judged by
the sweep's own `Screening`, whose looks cost what a trained AlexNet's levels cost, layer by layer,
at 224 pixels.  The same is counted on the real network's own activations, of ten categories.
``pytest -s bench/e2e/test_fpe.py``; ``BENCH_FPE_CATEGORIES`` made-up ones (default 24).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, median

import numpy as np
import pytest
import torch
from margins import LEVELS, STOPS, Recorded, load
from thousand import CONV, DENSE, FC, TARGETS, category, moved
from torch import Tensor

from circuitcore.extraction.accuracy import SLACK, Judge, choose_level, worth
from circuitcore.extraction.screening import Rule, Screening
from circuitcore.extraction.stage import ERROR_BUDGET

CATEGORIES = int(os.environ.get("BENCH_FPE_CATEGORIES", "24"))
TARGET = {"sparsest-above": 3.0, "first-crossing": 6.0}  # FPE a category, 32 + 32 levels
THRESHOLD = 0.9
BIAS = os.environ.get("BENCH_FPE_BIAS", "matched")
NAIVE = 2 * LEVELS  # every level a whole forward pass
STAGES = ("fc", "conv")
Cost = Callable[[Sequence[int], int], float]
"""cost(levels, images) -> multiply-adds"""


@dataclass(frozen=True)
class Swept:
    """One stage: the level chosen, and with everything run; FPE of both.

    ``by_level`` FPE of the looks at each level, ``images`` run there, of ``total`` in the set.
    """

    chosen: int
    truth: int
    fpe: float
    fpe_off: float
    by_level: dict[int, float]
    images: dict[int, int]
    total: int


def swept(
    stage: str, rows: Tensor, judge: Judge, reference: float, stop: str, cost: Cost, units: int
) -> Swept:
    """A stage as `extraction.stage.sweep_stage` sweeps it, with looks counted, not run."""
    count, images = rows.shape
    spent: dict[int, float] = {}
    seen: dict[int, int] = {}

    def look(levels: Sequence[int], some: np.ndarray, precise: bool) -> Tensor:
        fpe = cost(levels, len(some)) / (DENSE * images)
        for t in levels:
            spent[t] = spent.get(t, 0.0) + fpe / len(levels)
            seen[t] = seen.get(t, 0) + len(some)
        return rows[list(levels)][:, torch.from_numpy(some)]

    rule = Rule(
        below=THRESHOLD * reference - SLACK,
        stop=stop,
        bias=BIAS,
        at_once=stage == "fc",
        risk=ERROR_BUDGET / (units * 2 * LEVELS),
    )
    screening = Screening(judge, rows[0], count, look, rule)
    chosen = screening.run()
    assert screening.looked[chosen].all()  # certified
    values = [worth(found, BIAS) for found in judge.fitted(rows, BIAS)]
    truth = choose_level(values, THRESHOLD * reference, stop)
    off = cost(range(1, count), images) / (DENSE * images)
    return Swept(chosen, truth, sum(spent.values()), off, spent, seen, images)


def conv_cost(fractions: np.ndarray) -> Cost:
    """Levels run one by one: ``fractions`` [L, layers] of AlexNet's layers at 224 pixels."""
    each = fractions.astype(np.float64) @ np.array([*CONV.values(), *FC.values()])
    return lambda levels, images: images * float(each[list(levels)].sum())


def nearest(levels: Sequence[int], t: int) -> int:
    """The recorded fc level nearest to ``t``."""
    return min(levels, key=lambda level: abs(level - t))


Sweep = dict[str, Swept]


def made_up(seed: int, real: Recorded, stop: str, norm: str) -> Sweep | None:
    """One category of 1,000; None where the unpruned network does not get it right."""
    random = np.random.default_rng([seed, 1000])
    found = category(random)
    judge = found.judge(norm)
    reference = worth(judge.fitted(judge.unpruned[None], BIAS)[0], BIAS)
    if reference <= 0:
        return None
    start, stages = found.unpruned, {}
    for stage in STAGES:
        if stage == "fc":
            real_rows, cost = real.fc, real.fc_cost
        else:
            level = nearest(list(real.conv), stages["fc"].chosen)
            real_rows, cost = real.conv[level], conv_cost(real.costs[level])
        rows = moved(random, start, found.target, real_rows, real.target)
        stages[stage] = swept(stage, rows, judge, reference, stop, cost, 1000)
        start = rows[stages[stage].chosen].double().numpy()
    return stages


def recorded(real: Recorded, stop: str, norm: str) -> Sweep:
    """The real category itself."""
    judge = Judge(
        torch.from_numpy(real.margin).double(),
        torch.from_numpy(real.target),
        torch.from_numpy(real.fc[0]),
        norm,
    )
    reference = worth(judge.fitted(judge.unpruned[None], BIAS)[0], BIAS)
    fc = swept("fc", torch.from_numpy(real.fc), judge, reference, stop, real.fc_cost, 10)
    level = nearest(list(real.conv), fc.chosen)
    rows, cost = torch.from_numpy(real.conv[level]), conv_cost(real.costs[level])
    return {"fc": fc, "conv": swept("conv", rows, judge, reference, stop, cost, 10)}


@cache
def real_categories() -> tuple[Recorded, ...]:
    return tuple(load())


@cache
def thousand(stop: str, norm: str) -> tuple[Sweep, ...]:
    """So many defined categories of 1,000, the real ones lending their movement in turn."""
    found: list[Sweep] = []
    seed = 0
    while len(found) < CATEGORIES:
        sweep = made_up(seed, real_categories()[seed % len(real_categories())], stop, norm)
        found += [sweep] if sweep is not None else []
        seed += 1
    return tuple(found)


def table(title: str, sweeps: Sequence[Sweep]) -> str:
    """FPE a category by stage, with everything run, and where the levels chosen differ."""
    total = [sum(stage.fpe for stage in sweep.values()) for sweep in sweeps]
    off = mean(sum(stage.fpe_off for stage in sweep.values()) for sweep in sweeps)
    lines = [
        f"{title}: {len(sweeps)} categories",
        f"  FPE a category: mean {mean(total):.2f}, median {median(total):.2f}, "
        f"max {max(total):.2f}; --screen off {off:.2f}; naive {NAIVE}",
    ]
    for stage in STAGES:
        each = [sweep[stage] for sweep in sweeps]
        chosen = [s.chosen for s in each]
        lines.append(
            f"  {stage:4}: mean {mean(s.fpe for s in each):.2f} (off "
            f"{mean(s.fpe_off for s in each):.2f}); level chosen {min(chosen)} to {max(chosen)}, "
            f"median {median(chosen):g}; otherwise than with everything run: "
            f"{sum(s.chosen != s.truth for s in each)}"
        )
        lines.append(f"        costliest levels: {costliest(each)}")
    whole = {"fc": sum(FC.values()), "conv": sum(FC.values()) + sum(CONV.values())}
    plain = [
        sum(sum(stage.images.values()) * whole[name] for name, stage in sweep.items())
        for sweep in sweeps
    ]
    images = sweeps[0]["fc"].total
    lines.append(
        f"  with nothing compacted, by screening alone: mean {mean(plain) / DENSE / images:.2f}"
    )
    return "\n".join(lines)


def costliest(each: Sequence[Swept]) -> str:
    """Where most of the cost is: FPE and images a category, means over all of them."""
    fpe = {t: mean(s.by_level.get(t, 0.0) for s in each) for t in range(1, LEVELS)}
    seen = {t: mean(s.images.get(t, 0) for s in each) for t in fpe}
    most = sorted(fpe, key=lambda t: -fpe[t])[:5]
    return ", ".join(f"{t}: {fpe[t]:.2f} ({seen[t]:,.0f} images)" for t in most if fpe[t])


def test_unpruned_margins(capsys):
    """Hit rate about 0.55 and as many false alarms as misses, over the categories drawn."""
    drawn = [category(np.random.default_rng([seed, 1000])).judge("target") for seed in range(40)]
    plain = [judge.at(judge.unpruned, 0.0) for judge in drawn]
    hit, alarms = mean(p.hit for p in plain), mean(p.false_alarms for p in plain)
    with capsys.disabled():
        print(f"\n1 of 1,000, unpruned at bias 0: hit rate {hit:.2f}, {alarms:.1f} false alarms")
    assert hit == pytest.approx(0.55, abs=0.1)
    assert alarms == pytest.approx((1 - hit) * TARGETS, rel=0.35)


def show(capsys, title: str, sweeps, stop: str) -> None:
    """Print the counts; from the sparse end the choice must be that of running everything."""
    with capsys.disabled():
        print(f"\n{table(title, sweeps)}")
    if stop == "sparsest-above":
        assert all(s.chosen == s.truth for sweep in sweeps for s in sweep.values())


@pytest.mark.parametrize("stop", STOPS)
def test_categories_of_a_thousand(stop, capsys):
    """20 target images in 20,000; the choice from the sparse end is that of running everything."""
    sweeps = thousand(stop, "target")
    show(capsys, f"1 of 1,000, --stop {stop}, target {TARGET[stop]:g} FPE", sweeps, stop)
    assert mean(sum(s.fpe for s in sweep.values()) for sweep in sweeps) <= TARGET[stop]


@pytest.mark.parametrize("stop", STOPS)
def test_a_false_alarm_costs_less_under_norm_other(stop, capsys):
    """The same categories where false alarms are divided by the other images: samples accept."""
    sweeps = thousand(stop, "other")
    show(capsys, f"1 of 1,000, --stop {stop}, --false-alarm-norm other", sweeps, stop)


@pytest.mark.parametrize("stop", STOPS)
def test_the_real_network(stop, capsys):
    """40 target images in 400, as recorded."""
    sweeps = [recorded(real, stop, "target") for real in real_categories()]
    show(capsys, f"trained AlexNet, 1 of 10, --stop {stop}", sweeps, stop)
