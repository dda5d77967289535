"""Uncertainty of what is counted and averaged: intervals, each under its usual name.

Clopper & Pearson 1934 (exact binomial limits); Efron & Tibshirani 1993 (percentile bootstrap);
Hautus 1995 (d' with log-linear correction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri

RESAMPLES = 10_000
BLOCK = 1 << 24  # numbers drawn at once
MIDDLE = (0.025, 0.975)


class Part(NamedTuple):
    """``yes`` of ``of`` images say yes; the fraction of them is worth ``worth``."""

    yes: int
    of: int
    worth: float = 1.0


def clopper_pearson(count: int, of: int, error: float) -> float:
    """Lower limit of a proportion ``count`` / ``of``, one-sided: too high with chance ``error``.

    Raises ValueError where ``count`` is not among 0 to ``of`` or ``error`` not between 0 and 1.
    """
    if not 0 <= count <= of or of < 1 or not 0 < error < 1:
        raise ValueError(f"clopper_pearson: {count} of {of} with error {error}")
    return float(betaincinv(count, of - count + 1, error)) if count else 0.0


def bootstrap(
    values: Sequence[float] | np.ndarray,
    seed: int | Sequence[int],
    statistic: Callable[[np.ndarray], np.ndarray] = lambda drawn: drawn.mean(axis=-1),
) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of values [N]; None for fewer than two.

    ``statistic`` takes float64 [resamples, N].  Of paired values (a circuit and its control on
    the same images or categories) give the differences: they are drawn together.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    generator, found = np.random.default_rng(seed), []
    for start in range(0, RESAMPLES, step := max(1, BLOCK // len(values))):
        size = min(step, RESAMPLES - start), len(values)
        found.append(statistic(values[generator.integers(0, len(values), size)]))
    low, high = np.quantile(np.concatenate(found), MIDDLE)
    return float(low), float(high)


def hierarchical_bootstrap(
    groups: Sequence[Sequence[float] | np.ndarray], seed: int | Sequence[int]
) -> tuple[float, float] | None:
    """95 % interval of the mean of group means: groups (categories) drawn, then values in each.

    None for fewer than two groups, or where a group is empty.
    """
    arrays = [np.asarray(group, float) for group in groups]
    if len(arrays) < 2 or not all(len(group) for group in arrays):
        return None
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(arrays), (RESAMPLES, len(arrays)))
    total = np.zeros(RESAMPLES)
    # all draws of one group at once, a block at a time
    for group, times in zip(arrays, _times(chosen), strict=True):
        means = np.empty(int(times.sum()))
        for start in range(0, len(means), step := max(1, BLOCK // len(group))):
            part = means[start : start + step]
            part[:] = group[generator.integers(0, len(group), (len(part), len(group)))].mean(1)
        ends = np.concatenate([[0.0], np.cumsum(means)])[np.cumsum([0, *times])]
        total += np.diff(ends)
    low, high = np.quantile(total / len(arrays), MIDDLE)
    return float(low), float(high)


def bootstrap_of_counts(
    groups: Sequence[Sequence[Part]], seed: int | Sequence[int]
) -> tuple[float, float] | None:
    """`hierarchical_bootstrap` of groups that are known as counts: the same distribution.

    A group's value is the sum of its parts (hits, then false alarms with a negative worth), each
    over images of its own.  Drawing n of n images of which c say yes is a binomial draw, so no
    image need be at hand.  None for fewer than two groups, or where a part has no images.
    """
    if len(groups) < 2 or any(part.of < 1 for group in groups for part in group):
        return None
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(groups), (RESAMPLES, len(groups)))
    total, drawn = np.zeros(RESAMPLES), _times(chosen)
    for group, times in zip(groups, drawn, strict=True):  # each time its images are drawn anew
        for yes, of, worth in group:
            total += worth * generator.binomial(of * times, yes / of) / of
    low, high = np.quantile(total / len(groups), MIDDLE)
    return float(low), float(high)


def _times(chosen: np.ndarray) -> np.ndarray:
    """How often each of N groups is among the N drawn, int32 [N, R] of int [R, N]; one pass."""
    resamples, groups = chosen.shape
    places = chosen + groups * np.arange(resamples)[:, None]
    counted = np.bincount(places.ravel(), minlength=chosen.size).astype(np.int32)
    return np.ascontiguousarray(counted.reshape(resamples, groups).T)


def d_prime(hits: int, targets: int, false_alarms: int, others: int) -> float:
    """Sensitivity z(H) - z(F), half a response added to each count so that it is finite.

    Raises ValueError where there are no targets or no others.
    """
    if min(targets, others) < 1:
        raise ValueError("d_prime: targets and others must be 1 or more")
    rate = (hits + 0.5) / (targets + 1), (false_alarms + 0.5) / (others + 1)
    return float(ndtri(rate[0]) - ndtri(rate[1]))


def precision(hits: int, false_alarms: int) -> float | None:
    """Hits among all images said to be the category; None where none is."""
    said = hits + false_alarms
    return hits / said if said else None


def replaced_share(pool: int, drawn: int, replaced: int) -> float:
    """Chance that k = ``drawn`` of n = ``pool`` images hold one of r: 1 - C(n-r, k) / C(n, k)."""
    return float(1 - Fraction(math.comb(pool - replaced, drawn), math.comb(pool, drawn)))


def least_count(resamples: int, pool: int, drawn: int, replaced: int, error: float) -> int | None:
    """Fewest of the resamples that must keep a weight for the certificate of its majority.

    Certified: the majority of all draws of ``drawn`` from ``pool`` keeps it whichever ``replaced``
    images of the pool are replaced by others, but for a chance of ``error`` (Certified Circuits,
    arXiv 2602.22968).  None where not even all resamples are enough.
    """
    moved = replaced_share(pool, drawn, replaced)
    enough = [
        count
        for count in range(resamples + 1)
        if clopper_pearson(count, resamples, error) - moved > 0.5
    ]
    return enough[0] if enough else None


def most_replaced(resamples: int, pool: int, drawn: int, error: float) -> int:
    """The largest number of replaced images that can be certified; 0 where none can."""
    replaced = 0
    while (
        replaced < pool - drawn
        and least_count(resamples, pool, drawn, replaced + 1, error) is not None
    ):
        replaced += 1
    return replaced
