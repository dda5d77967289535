"""Two benchmark runs held against each other: medians, with the noise of their own rounds.

On one device seconds are compared; between devices what is measured side by side, a row's seconds
over those of each contender it ran with.  From one run to the next a machine may be slower all
round, and no noise within a run tells: so on one device too a row with contenders is faster or
slower only if it is so beside them as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from circuitcore.errors import UsageError
from circuitcore.jobs.profiling.benchmarks import Row, Times

DRAWS, COVERED = 2000, 0.95  # of the bootstrap over rounds
WITHIN = 1.1  # what counts as the same: ratios move by a tenth from run to run (bench/README.md)
FASTER, SLOWER, SAME, UNSURE = "faster", "slower", "same", "unsure"
MUST_AGREE = ("dtype", "shape")
SECONDS = "seconds"


class Compared(BaseModel):
    """One row of both runs: how many times the seconds of A, or A's ratio, B takes.

    ``by``: ``seconds``, or the contender whose seconds both are divided by; ``low``, ``high``: 95 %
    of ``ratio`` over rounds drawn again, None where a run keeps medians alone; ``beside``: of
    seconds, how many times those of the contenders B takes (their geometric mean).
    """

    model_config = ConfigDict(frozen=True)

    name: str
    by: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str
    beside: float | None = None


class Comparison(BaseModel):
    """All rows of two runs; ``differing``: by name, why a row of both is not compared."""

    model_config = ConfigDict(frozen=True)

    device_a: str
    device_b: str
    commits_a: list[str]
    commits_b: list[str]
    within: float
    rows: list[Compared]
    differing: dict[str, str]
    only_a: list[str]
    only_b: list[str]

    def slower(self, over: float) -> list[Compared]:
        """Rows judged slower whose ratio is more than a factor."""
        return [row for row in self.rows if row.ratio > over and row.verdict == SLOWER]


def compared(a: Sequence[Row], b: Sequence[Row], within: float = WITHIN) -> Comparison:
    """Hold the rows of run B against those of run A, paired by name and parameters.

    ``within``: the factor up to which two times are the same.  Raises UsageError where it is no
    more than 1.
    """
    if not within > 1:
        raise UsageError(f"--within {within}: more than 1, such as {WITHIN}")
    ours, theirs = {row.name: row for row in a}, {row.name: row for row in b}
    rows, differing = [], {}
    for name in (name for name in ours if name in theirs):
        if why := _differs(ours[name], theirs[name]):
            differing[name] = why
        else:
            rows += _compared(ours[name], theirs[name], within)
    return Comparison(
        device_a=_device(a),
        device_b=_device(b),
        commits_a=_commits(a),
        commits_b=_commits(b),
        within=within,
        rows=rows,
        differing=differing,
        only_a=[name for name in ours if name not in theirs],
        only_b=[name for name in theirs if name not in ours],
    )


def _device(rows: Sequence[Row]) -> str:
    return " and ".join(dict.fromkeys(row.device for row in rows)) or "nothing"


def _commits(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.about["commit"] for row in rows if row.about.get("commit")))


def _differs(a: Row, b: Row) -> str:
    """Why two rows of one name are of different things; empty where they are of the same."""
    for what in MUST_AGREE:
        one, other = a.about.get(what), b.about.get(what)
        if one is not None and other is not None and one != other:
            return f"{what} {one} against {other}"
    if a.ours != b.ours:
        return f"about {a.ours} against {b.ours}"
    if a.device != b.device and not _shared(a, b):
        return f"on {a.device} against {b.device}, with no contender in common"
    return ""


def _shared(a: Row, b: Row) -> list[str]:
    return [name for name in a.times if name in b.times and name != a.ours]


def _compared(a: Row, b: Row, within: float) -> list[Compared]:
    one, other = a.times[a.ours], b.times[b.ours]
    shared = _shared(a, b)
    if a.device != b.device:
        return [
            _judged(a.name, name, (one, a.times[name]), (other, b.times[name]), within)
            for name in shared
        ]
    seconds = _judged(a.name, SECONDS, (one,), (other,), within)
    if not shared:
        return [seconds]
    # those that ran once have no noise; a few are left out rather than all judgement
    noisy = [n for n in shared if min(a.times[n].count, b.times[n].count) > 1] or shared
    beside_a, beside_b = (tuple(row.times[n] for n in noisy) for row in (a, b))
    relative = _judged(a.name, SECONDS, (one, *beside_a), (other, *beside_b), within)
    found = {"beside": seconds.ratio / relative.ratio}
    if seconds.verdict != relative.verdict:
        found["verdict"] = UNSURE  # type: ignore[assignment]
    return [seconds.model_copy(update=found)]


Fraction = tuple[Times, ...]
"""Seconds, over the geometric mean of those of contenders where there are any."""


def _judged(name: str, by: str, a: Fraction, b: Fraction, within: float) -> Compared:
    ratio, interval = _middle(b) / _middle(a), _interval(a, b)
    low, high = interval or (None, None)
    return Compared(
        name=name, by=by, a=_middle(a), b=_middle(b), ratio=ratio, low=low, high=high,
        verdict=verdict(ratio, low, high, within),
    )  # fmt: skip


def verdict(ratio: float, low: float | None, high: float | None, within: float) -> str:
    """``slower`` and ``faster`` by more than ``within`` and beyond the noise; ``same``: no more.

    ``unsure``: the noise is too large to say either, or is not known.
    """
    if low is None or high is None:
        return UNSURE
    if low >= 1 / within and high <= within:
        return SAME
    if low > 1 and ratio >= within:
        return SLOWER
    return FASTER if high < 1 and ratio <= 1 / within else UNSURE


def _middle(fraction: Fraction) -> float:
    over, *under = fraction
    mean = np.mean([math.log(each.median) for each in under]) if under else 0.0
    return over.median / math.exp(mean)


def _interval(a: Fraction, b: Fraction) -> tuple[float, float] | None:
    """The middle 95 % of B over A, rounds of each drawn again; None where one has no noise."""
    draws = [_drawn(times, seed) for seed, times in enumerate((*b, *a))]
    logs = [np.log(each) for each in draws if each is not None]
    if len(logs) < len(draws):
        return None
    (over_b, *under_b), (over_a, *under_a) = logs[: len(b)], logs[len(b) :]
    found = over_b - over_a
    if under_a:
        found = found - np.mean(under_b, axis=0) + np.mean(under_a, axis=0)
    tail = (1 - COVERED) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return math.exp(low), math.exp(high)


def _drawn(times: Times, seed: int) -> np.ndarray | None:
    """Medians of the rounds drawn again; of quartiles alone, normal with that spread."""
    rng = np.random.default_rng(seed)
    if len(times.rounds) > 1:
        rounds = np.asarray(times.rounds)
        return np.median(rng.choice(rounds, (DRAWS, len(rounds))), axis=1)
    if times.quartiles is None or times.count < 2:
        return None
    low, high = times.quartiles
    # a normal median's standard error is 1.2533 sd / sqrt(n), its quartiles 1.349 sd apart
    error = 1.2533 * (high - low) / 1.349 / math.sqrt(times.count)
    return np.maximum(times.median + error * rng.standard_normal(DRAWS), times.median * 1e-3)


def counts(found: Comparison) -> dict[str, int]:
    """How many rows there are of each verdict."""
    said = [row.verdict for row in found.rows]
    return {each: said.count(each) for each in (FASTER, SAME, SLOWER, UNSURE)}
