"""A reading over categories, beside the published figures; how far it is, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from circuitcore.analysis.reproduction.published import Figure
from circuitcore.analysis.reproduction.sharing import Shared
from circuitcore.analysis.statistics import MIDDLE
from circuitcore.extraction.readings import Read
from circuitcore.records import Record

RESAMPLES = 2_000  # of the categories, the same ones for every reading

Interval = tuple[float, float]


class Cell(Record):
    """One reading over all categories.

    ``reading``: its value on each axis; means over categories that have a circuit, with 95 %
    intervals over categories (bootstrap).  ``ratio``: of the means of held-out CSA, circuits over
    the unpruned network at bias 0, as published; ``ratio_biased``: at its own bias.  ``distance``:
    mean of |own / published - 1| over the figures that are compared; ``nearest``: in how many of
    the resamples of categories no reading is nearer, None where fewer than two have a circuit.
    ``fpe``: forward-pass equivalents a category it would have taken alone, None where that is not
    known (`Read`).
    """

    reading: dict[str, Any]
    preset: bool
    categories: int
    undefined: dict[str, int]
    pruned: float | None = None
    pruned_ci95: Interval | None = None
    pruned_sd: float | None = None
    kept_median: float | None = None
    heldout_hit: float | None = None
    unpruned_hit: float | None = None
    heldout_csa: float | None = None
    unpruned_csa: float | None = None
    empty_csa: float | None = None
    ratio: float | None = None
    ratio_ci95: Interval | None = None
    ratio_biased: float | None = None
    peak: float | None = None
    peak_kept: float | None = None
    no_better_than_random: int | None = None
    overlap: Shared | None = None
    fpe: float | None = None
    distance: float | None = None
    distance_ci95: Interval | None = None
    nearest: float | None = None

    def figure(self, of: str) -> float | None:
        """Its own value of a published figure."""
        if of.startswith("overlap_"):
            return None if self.overlap is None else float(getattr(self.overlap, of[8:]))
        found: float | None = getattr(self, of)
        return found


def summarised(
    reading: dict[str, Any], preset: bool, rows: Sequence[Read], once: int,
    overlap: Shared | None, figures: Sequence[Figure], seed: int,
) -> tuple[Cell, np.ndarray | None]:  # fmt: skip
    """One reading's `Cell` but for ``nearest``, and its distance in every resample, float64 [R]."""
    some = [row for row in rows if row.heldout is not None]
    cell = Cell(
        reading=reading, preset=preset, categories=len(rows), overlap=overlap,
        undefined=dict(Counter(row.undefined or "no circuit" for row in rows
                               if row.heldout is None)),
        fpe=_alone([row.multiply_adds for row in rows], once),
    )  # fmt: skip
    if not some:
        return cell, None
    values = _values(some)
    found = {name: float(value[0]) for name, value in _figures(values, None).items()}
    drawn = None
    if len(some) > 1:
        places = np.random.default_rng([seed, 95]).integers(0, len(some), (RESAMPLES, len(some)))
        drawn = _figures(values, places)
    updates: dict[str, Any] = {n: None if np.isnan(v) else v for n, v in found.items()}
    as_good = [row.as_good for row in some if row.as_good is not None]
    updates["no_better_than_random"] = sum(map(bool, as_good)) if as_good else None
    if drawn is not None:
        updates |= {f"{n}_ci95": _interval(drawn[n]) for n in ("pruned", "ratio")}
    cell = cell.model_copy(update=updates)
    distance = _distance({n: np.array([v]) for n, v in found.items()}, figures)
    if distance is None or np.isnan(distance[0]) or 2 * len(some) < len(rows):
        return cell, None  # a reading that most categories have no circuit by is near nothing
    apart = None if drawn is None else _distance(drawn, figures)
    interval = None if apart is None else _interval(apart)
    known = {"distance": float(distance[0]), "distance_ci95": interval}
    return cell.model_copy(update=known), apart


def _alone(costs: Sequence[int | None], once: int) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) / len(known) / once if known and len(known) == len(costs) else None


def with_nearest(cells: Sequence[Cell], apart: Sequence[np.ndarray | None]) -> list[Cell]:
    """The cells, each with the share of resamples in which no other is nearer.

    Ties count for all of them: readings that chose the same circuits cannot be told apart.
    """
    known = [each for each in apart if each is not None]
    if not known:
        return list(cells)
    least = np.nanmin(known, axis=0)
    return [
        cell if each is None
        else cell.model_copy(update={"nearest": float(np.mean(each <= least + 1e-12))})
        for cell, each in zip(cells, apart, strict=True)
    ]  # fmt: skip


def _values(rows: Sequence[Read]) -> dict[str, np.ndarray]:
    """By category, float64 [K] each."""
    peaks = [row.peak or (np.nan, np.nan) for row in rows]
    return {
        "pruned": np.array([row.pruned for row in rows], float),
        "hit": np.array([row.heldout.hit for row in rows if row.heldout], float),
        "csa": np.array([row.heldout.csa for row in rows if row.heldout], float),
        "unpruned_hit": np.array([row.unpruned.hit for row in rows], float),
        "unpruned": np.array([row.unpruned.csa for row in rows], float),
        "biased": np.array([row.unpruned_biased.csa for row in rows], float),
        "empty": np.array([row.empty.csa for row in rows], float),
        "peak": np.array([peak for peak, _ in peaks], float),
        "peak_kept": np.array([kept for _, kept in peaks], float),
    }


def _figures(values: dict[str, np.ndarray], places: np.ndarray | None) -> dict[str, np.ndarray]:
    """Figures of the categories at ``places`` [R, K] (of all, once, for None): float64 [R] each."""
    drawn = {n: v[None] if places is None else v[places] for n, v in values.items()}
    mean = {n: v.mean(1) for n, v in drawn.items()}
    several = drawn["pruned"].shape[1] > 1
    spread = drawn["pruned"].std(1, ddof=1) if several else np.full(len(mean["pruned"]), np.nan)
    return {
        "pruned": mean["pruned"],
        "pruned_sd": spread,
        "kept_median": np.median(1 - drawn["pruned"], axis=1),
        "heldout_hit": mean["hit"],
        "unpruned_hit": mean["unpruned_hit"],
        "heldout_csa": mean["csa"],
        "unpruned_csa": mean["unpruned"],
        "empty_csa": mean["empty"],
        "ratio": _over(mean["csa"], mean["unpruned"]),
        "ratio_biased": _over(mean["csa"], mean["biased"]),
        "peak": np.median(drawn["peak"], axis=1),
        "peak_kept": np.median(drawn["peak_kept"], axis=1),
    }


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is not positive."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _distance(found: dict[str, np.ndarray], figures: Sequence[Figure]) -> np.ndarray | None:
    """Mean relative difference to the figures that are compared, float64 [R]."""
    apart = [np.abs(found[f.of] / f.value - 1) for f in figures if f.compared and f.of in found]
    return np.mean(apart, axis=0) if apart else None


def _interval(drawn: np.ndarray) -> Interval | None:
    """The middle 95 %; None where a resample in twenty has no value."""
    known = drawn[~np.isnan(drawn)]
    if len(known) < 0.95 * len(drawn):
        return None
    low, high = np.quantile(known, MIDDLE)
    return float(low), float(high)
