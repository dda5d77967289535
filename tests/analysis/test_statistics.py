"""Each statistic against scipy, an enumeration, or a simulation whose truth is known."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from circuitcore.analysis import statistics as ours

COVERED = (0.90, 0.98)  # of 400 intervals of 95 %, by samples of 60 and 12 groups


@given(st.integers(1, 300), st.data(), st.sampled_from([0.05, 0.01, 1e-9]))
def test_clopper_pearson_is_scipys(of, data, error):
    count = data.draw(st.integers(0, of))
    test = stats.binomtest(count, of, alternative="greater")
    wanted = test.proportion_ci(1 - error, method="exact").low
    assert ours.clopper_pearson(count, of, error) == pytest.approx(wanted, abs=1e-9)


def test_the_limit_is_too_high_as_rarely_as_it_says():
    random = np.random.default_rng(0)
    for truth in (0.2, 0.7, 0.97):
        counts = random.binomial(100, truth, 4000)
        limits = {c: ours.clopper_pearson(int(c), 100, 0.05) for c in set(counts.tolist())}
        assert np.mean([limits[c] > truth for c in counts.tolist()]) <= 0.06


def test_bootstrap_is_scipys():
    values = np.random.default_rng(1).gamma(2.0, size=40)
    low, high = ours.bootstrap(values, 3)
    wanted = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.03)
    assert ours.bootstrap([1.0], 0) is None
    assert ours.bootstrap([2.0, 2.0], 0) == (2.0, 2.0)
    assert ours.bootstrap(values, 3) == (low, high)


def test_bootstrap_covers_the_difference_of_pairs():
    random, covered = np.random.default_rng(2), 0
    for trial in range(400):
        shared = random.normal(0, 5, 60)  # images that are hard for both
        one, other = (shared + random.normal(mean, 1, 60) for mean in (0.5, 0.0))
        low, high = ours.bootstrap(one - other, trial)
        covered += low <= 0.5 <= high
        assert high - low < 1  # pairs: unpaired it would be over 3
    assert COVERED[0] <= covered / 400 <= COVERED[1]


def test_the_hierarchical_one_covers_where_images_alone_do_not():
    random, covered, flat = np.random.default_rng(3), 0, 0
    for trial in range(400):
        groups = [random.normal(mean, 1, 20) for mean in random.normal(0, 1, 12)]
        low, high = ours.hierarchical_bootstrap(groups, trial)
        covered += low <= 0 <= high
        low, high = ours.bootstrap(np.concatenate(groups), trial)
        flat += low <= 0 <= high
    assert COVERED[0] - 0.02 <= covered / 400 <= COVERED[1]
    assert flat / 400 < 0.6
    assert ours.hierarchical_bootstrap([[1.0, 2.0]], 0) is None
    assert ours.hierarchical_bootstrap([[1.0], []], 0) is None


def images(group):
    """A group's images, one value each, whose mean is what its parts are worth."""
    each = [np.repeat([worth, 0.0], [yes, of - yes]) for yes, of, worth in group]
    return each


def test_counts_are_drawn_as_images_are():
    """The same distribution as drawing categories, then each image, written out in loops."""
    random = np.random.default_rng(6)
    groups = [
        [ours.Part(int(random.integers(0, 21)), 20), ours.Part(int(random.integers(0, 9)), 80, -1)]
        for _ in range(6)
    ]
    values = []
    for _ in range(6000):
        total = 0.0
        for place in random.integers(0, len(groups), len(groups)):
            parts = images(groups[place])
            total += sum(part[random.integers(0, len(part), len(part))].mean() for part in parts)
        values.append(total / len(groups))
    wanted = np.quantile(values, [0.025, 0.975])
    found = ours.bootstrap_of_counts(groups, 1)
    assert found == pytest.approx(wanted, abs=0.012)
    alone = [[group[0]] for group in groups]  # one part: the function of arrays
    arrays = [images(group)[0] for group in alone]
    wanted = ours.hierarchical_bootstrap(arrays, 2)
    assert ours.bootstrap_of_counts(alone, 3) == pytest.approx(wanted, abs=0.012)
    assert ours.bootstrap_of_counts(groups, 1) == found
    assert ours.bootstrap_of_counts(groups[:1], 0) is None
    assert ours.bootstrap_of_counts([[ours.Part(0, 0)], [ours.Part(1, 2)]], 0) is None


def test_the_interval_of_counts_covers_the_mean_over_all_categories():
    """Rates of categories are drawn from a beta distribution, so that the truth is its mean."""
    random, covered, alone = np.random.default_rng(7), 0, 0
    for trial in range(400):
        rates = random.beta(6, 2, 15)
        hits = random.binomial(20, rates)
        low, high = ours.bootstrap_of_counts([[ours.Part(int(h), 20)] for h in hits], trial)
        covered += low <= 0.75 <= high
        pooled = np.repeat([1.0, 0.0], [hits.sum(), 300 - hits.sum()])
        low, high = ours.bootstrap(pooled, trial)
        alone += low <= 0.75 <= high
    assert COVERED[0] <= covered / 400 <= COVERED[1] + 0.01
    assert alone / 400 < 0.85


def test_d_prime_finds_the_distance_of_two_normals():
    random = np.random.default_rng(4)
    hits = int((random.normal(1.5, 1, 10**6) > 0.4).sum())
    false = int((random.normal(0, 1, 10**6) > 0.4).sum())
    assert ours.d_prime(hits, 10**6, false, 10**6) == pytest.approx(1.5, abs=0.01)
    assert np.isfinite(ours.d_prime(20, 20, 0, 100))
    assert ours.d_prime(5, 20, 5, 20) == 0
    with pytest.raises(ValueError):
        ours.d_prime(0, 0, 0, 5)


def test_precision():
    assert ours.precision(3, 1) == 0.75 and ours.precision(0, 0) is None


@given(st.integers(2, 9), st.data())
def test_the_share_of_draws_that_hold_a_replaced_image(pool, data):
    drawn = data.draw(st.integers(1, pool))
    replaced = data.draw(st.integers(0, pool))
    draws = list(combinations(range(pool), drawn))
    wanted = np.mean([min(draw) < replaced for draw in draws])
    assert ours.replaced_share(pool, drawn, replaced) == pytest.approx(wanted)


def test_what_can_be_certified():
    """The limits that 32 images, four drawn, need: 0.625, 0.738, 0.840, 0.931 for one to four."""
    needed = [0.5 + ours.replaced_share(32, 4, r) for r in (1, 2, 3, 4)]
    assert needed == pytest.approx([0.625, 0.738, 0.840, 0.931], abs=6e-4)
    assert ours.clopper_pearson(100, 100, 0.01 / 57e6) == pytest.approx(0.80, abs=5e-3)
    assert ours.most_replaced(100, 32, 4, 0.01 / 57e6) == 2
    assert ours.most_replaced(100, 32, 4, 0.01) == 4
    assert ours.least_count(10, 32, 4, 1, 0.01 / 57e6) is None
    assert ours.most_replaced(10, 32, 4, 0.01 / 57e6) == 0
    for r in (1, 2):
        least = ours.least_count(100, 32, 4, r, 1e-6)
        assert ours.clopper_pearson(least, 100, 1e-6) > needed[r - 1]
        assert ours.clopper_pearson(least - 1, 100, 1e-6) <= needed[r - 1]


def test_what_is_certified_holds_when_images_are_replaced():
    """By enumeration: a weight kept by enough draws keeps its majority whatever replaces two."""
    pool, drawn, replaced, resamples = 9, 2, 2, 200
    draws = list(combinations(range(pool), drawn))
    random = np.random.default_rng(5)
    least = ours.least_count(resamples, pool, drawn, replaced, 1e-3)
    for share in (0.5, 0.8, 0.9, 0.95, 1.0):
        kept = random.random(len(draws)) < share  # by which draws the weight is kept
        seen = kept[random.integers(0, len(draws), resamples)].sum()
        assert least is not None
        if seen >= least:
            worst = min(
                sum(k for k, d in zip(kept, draws, strict=True) if not set(d) & set(gone))
                for gone in combinations(range(pool), replaced)
            )
            assert worst > len(draws) / 2
