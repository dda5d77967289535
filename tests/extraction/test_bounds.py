"""What looks only at the images that matter, against the same with every image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.extraction.accuracy import Judge
from circuitcore.extraction.bounds import FAR, Known, _open, bounds, smallest, unsettled_images
from circuitcore.extraction.looks import Looks
from circuitcore.extraction.neighbours import REACH, Neighbours
from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import NORMS, csa, csa_of


@st.composite
def known_levels(draw, every=False):
    """A judge and what is known of a level: steps with ties, errors, images not run."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    images, grid = draw(st.integers(2, 60)), draw(st.sampled_from([1.0, 4.0, 1e6]))
    numbers = (np.round(random.normal(2, 2, (3, images)) * grid) / grid).astype(np.float32)
    target = random.random(images) < 0.3
    target[random.integers(images)] = True
    judge = Judge(
        torch.from_numpy(numbers[0]).double(),
        torch.from_numpy(target),
        torch.from_numpy(numbers[1]),
        draw(st.sampled_from(NORMS)),
    )
    looked = target | (random.random(images) < draw(st.sampled_from([0.0, 0.3, 0.9])))
    looked |= every
    error = np.where(random.random(images) < 0.5, 0.0, draw(st.sampled_from([0.0, 0.1, 2.0])))
    error[~looked] = np.where(random.random((~looked).sum()) < 0.5, 1.5, np.inf)
    return judge, Known(numbers[2].astype(np.float64), error, looked)


@given(known_levels())
@settings(deadline=None, max_examples=300)
def test_bounds_of_a_matched_bias_are_those_of_every_image(problem):
    judge, known = problem
    sign = np.where(judge.is_target.numpy(), 1.0, -1.0)
    error = np.minimum(known.error, FAR)
    best = known.activation + sign * np.where(known.looked, error, FAR)
    rows = torch.from_numpy(np.stack([known.activation, known.activation - sign * error, best]))
    found = best_bias(
        rows, judge.margin_max, judge.is_target, norm=judge.norm,
        most_alarms=judge.unpruned_alarms, impl="torch",
    )  # fmt: skip
    ours = bounds(judge, known, "matched")
    for k, each in enumerate((ours.expected, ours.low, ours.high)):
        assert (each.bias, each.csa) == (float(found.bias[k]), float(found.csa[k]))
        assert each.hit == int(found.hits[k]) / judge.targets
        assert each.false_alarms == int(found.false_alarms[k])


@given(known_levels(every=True))
@settings(deadline=None, max_examples=300)
def test_images_not_settled_are_those_among_all(problem):
    judge, known = problem
    steps = judge.margins - known.activation
    low, high = steps - known.error, steps + known.error
    target = judge.is_target.numpy()
    meets = _open(judge, target, low, high, high, "matched", -np.inf)
    wanted = np.flatnonzero(meets & (known.error > 0))
    assert np.array_equal(unsettled_images(judge, known, "matched"), wanted)


@given(st.integers(0, 10**6), st.integers(0, 70))
@settings(deadline=None)
def test_the_smallest_come_in_order(seed, count):
    values = np.random.default_rng(seed).integers(0, 9, 50).astype(np.float64)
    assert np.array_equal(smallest(values, count), np.argsort(values, kind="stable")[:count])


@pytest.mark.parametrize("norm", NORMS)
def test_one_csa_is_that_of_tensors(norm):
    for hits, alarms, others in ((0, 0, 0), (3, 0, 40), (3, 7, 40), (7, 39, 40)):
        counts = map(torch.tensor, (hits, alarms, 7, others))
        assert csa_of(hits, alarms, 7, others, norm) == float(csa(*counts, norm))


@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
def test_what_is_known_of_a_level_is_kept_no_longer_than_it_holds(stop):
    """Levels looked at in any order and precision, against all of it reckoned anew."""
    random = np.random.default_rng(4)
    rows = random.normal(0, 3, (8, 90)).cumsum(0)

    def look(levels, images, precise):
        found = rows[list(levels)][:, images]
        off = 0.0 if precise else 0.01 * np.sin(1e3 * found)
        return torch.from_numpy(found + off).float()

    looks, first = Looks(look, 8, 90, low=True), np.arange(0, 90, 4)
    looks.start(rows[0], np.ones(90, bool), 0.0)
    neighbours = Neighbours(looks, first, stop)
    looks.see(range(1, 8), first)
    seen = False
    for _ in range(60):
        t, some = int(random.integers(1, 8)), random.permutation(90)[:5]
        looks.see([int(random.integers(1, 8))], np.sort(some), precise=bool(random.integers(2)))
        known = neighbours.known(t)
        activation, error = plainly(looks, first, t, stop)
        assert known.activation == pytest.approx(activation, abs=1e-12)
        assert known.error == pytest.approx(error, abs=1e-12)
        assert np.array_equal(known.looked, looks.looked[t])
        seen |= bool(known.looked.any() and not known.looked.all())
    assert seen


def plainly(looks, first, t, stop):
    """Activation and error [N] at level ``t``, image by image."""
    moved = np.diff(looks.activation[:, first], axis=0)
    shift = np.median(moved, axis=1)
    reach = REACH * np.abs(moved - shift[:, None]).max(1)
    activation, error = np.zeros(90), np.zeros(90)
    for n in range(90):
        order = range(t, 8) if stop == "sparsest-above" else range(t, -1, -1)
        near = next((u for u in order if looks.looked[u, n]), 0)
        between = slice(near, t)
        rounding = 0.0 if looks.exact[near, n] else looks.bound[near]
        activation[n], error[n] = looks.activation[near, n], rounding
        if stop == "first-crossing":
            activation[n] += shift[between].sum()
            error[n] += reach[between].sum()
        elif near != t:
            error[n] = np.inf
    return activation, error
