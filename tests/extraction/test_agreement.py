"""How well values follow others: against scipy, and where it is not defined."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from circuitcore.extraction.agreement import agreement, chosen_level, interval, value_of

JUDGES = ("correlation", "spearman", "error")


@pytest.fixture(scope="module")
def values():
    random = np.random.default_rng(0)
    unpruned = np.maximum(random.normal(size=80), 0)  # with ties, as behind a ReLU
    rows = unpruned + random.normal(size=(5, 1)) * random.normal(size=(5, 80))
    return np.maximum(rows, 0), unpruned


def test_against_scipy(values):
    rows, unpruned = values
    for row, r, rho, error in zip(
        rows, *(agreement(j, rows, unpruned) for j in JUDGES), strict=True
    ):
        assert r == pytest.approx(pearsonr(row, unpruned).statistic, abs=1e-12)
        assert rho == pytest.approx(spearmanr(row, unpruned).statistic, abs=1e-12)
        lost = sum((a - b) ** 2 for a, b in zip(row, unpruned, strict=True))
        assert error == pytest.approx(1 - lost / (len(row) * np.var(unpruned)), abs=1e-12)


def test_what_each_judge_does_not_see(values):
    rows, unpruned = values
    moved = 3 * rows + 7
    assert agreement("correlation", moved, unpruned) == pytest.approx(
        agreement("correlation", rows, unpruned)
    )
    assert np.array_equal(
        agreement("spearman", rows**3, unpruned), agreement("spearman", rows, unpruned)
    )
    assert (agreement("error", moved, unpruned) < agreement("error", rows, unpruned)).all()
    assert [value_of(judge, unpruned, unpruned) for judge in JUDGES] == pytest.approx([1, 1, 1])


def test_equal_values_have_no_correlation(values):
    rows, unpruned = values
    same = np.full(80, 0.1)  # whose mean is rounded
    for judge in JUDGES:
        assert value_of(judge, rows[0], same) is None
        assert interval(judge, rows[0], same, 0) is None
    assert value_of("correlation", same, unpruned) is None
    assert value_of("spearman", same, unpruned) is None
    assert value_of("error", np.full(80, unpruned.mean()), unpruned) == pytest.approx(0)


@pytest.mark.parametrize("judge", JUDGES)
def test_interval_is_that_of_resampled_images(judge, values):
    rows, unpruned = values
    row = rows[1]
    low, high = interval(judge, row, unpruned, 3)
    assert low < value_of(judge, row, unpruned) < high
    assert interval(judge, row, unpruned, 3) == (low, high)
    drawn = np.random.default_rng(9).integers(0, 80, (2000, 80))
    found = [value_of(judge, row[at], unpruned[at]) for at in drawn]
    assert (low, high) == pytest.approx(np.quantile(found, [0.025, 0.975]).tolist(), abs=0.1)


def test_undefined_levels_hold_nothing():
    assert chosen_level([1.0, 0.95, None, 0.97], 0.9, "first-crossing") == 1
    assert chosen_level([1.0, 0.95, None, 0.97, None], 0.9, "sparsest-above") == 3
    assert chosen_level([1.0, None], 0.9, "sparsest-above") == 0
