"""The exact bias against brute force, a grid, gradient training and its two implementations."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import NORMS, BestBias

IMPLS = ("torch", "numba")


def accuracy(a, m, target, b, norm):
    """(hits, false alarms, CSA as a fraction) at bias b, counted image by image."""
    predicted = (m.double() - a.double()) < b
    hits, alarms = int((predicted & target).sum()), int((predicted & ~target).sum())
    targets = int(target.sum())
    divisor = {"target": targets, "other": len(target) - targets, "predicted": hits + alarms}[norm]
    return hits, alarms, Fraction(hits, targets) - Fraction(alarms, max(divisor, 1))


def only(row: BestBias) -> tuple:
    return tuple(part.item() for part in row)


@st.composite
def problems(draw):
    n = draw(st.integers(1, 24))
    grid = draw(st.sampled_from([1, 4, 1000]))  # few distinct steps: many ties
    number = st.integers(-3 * grid, 3 * grid).map(lambda v: v / grid)
    a = draw(st.lists(number, min_size=n, max_size=n))
    target = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    target[draw(st.integers(0, n - 1))] = True
    return torch.tensor(a), torch.zeros(n), torch.tensor(target)


@settings(deadline=None, max_examples=150)
@given(problems(), st.sampled_from(NORMS))
def test_is_the_best_of_all_intervals_and_nearest_to_zero(problem, norm):
    a, m, target = problem
    steps = sorted(set((m.double() - a.double()).tolist()))
    edges = [-float("inf"), *steps, float("inf")]
    intervals = list(zip(edges[:-1], edges[1:], strict=True))
    value = {s: accuracy(a, m, target, min(s[1], s[0] + 1e6), norm)[2] for s in intervals[1:]}
    value[intervals[0]] = Fraction(0)
    best = max(value.values())
    for impl in IMPLS:
        bias, hits, alarms, csa, lo, hi = only(best_bias(a, m, target, norm=norm, impl=impl))
        assert lo < bias <= hi and (lo, hi) in value
        assert (hits, alarms) == accuracy(a, m, target, bias, norm)[:2]
        assert csa == float(accuracy(a, m, target, bias, norm)[2])
        if best <= 0:  # no image is said to be the category
            assert (hits, alarms, csa) == (0, 0, 0.0) and bias == min(0.0, steps[0])
            assert (lo, hi) == intervals[0]
            continue
        assert value[lo, hi] == best
        if any(value[s] == best and s[0] < 0 <= s[1] for s in intervals):
            assert bias == 0
        else:
            distance = {s: max(s[0], -s[1]) for s in intervals if value[s] == best}
            assert max(lo, -hi) == min(distance.values())
            assert bias == (lo + 1 if hi == float("inf") else (lo + hi) / 2)


@settings(deadline=None, max_examples=300)
@given(problems(), st.integers(0, 6), st.sampled_from(NORMS))
def test_a_matched_bias_has_the_most_hits_at_no_more_false_alarms(problem, most, norm):
    a, m, target = problem
    steps = sorted(set((m.double() - a.double()).tolist()))
    edges = [-float("inf"), *steps, float("inf")]
    intervals = list(zip(edges[:-1], edges[1:], strict=True))
    counted = {s: accuracy(a, m, target, min(s[1], max(s[0], -1e6) + 1e6), norm)[:2]
               for s in intervals}  # fmt: skip
    admissible = {s: hits for s, (hits, alarms) in counted.items() if alarms <= most}
    best = max(admissible.values())
    for impl in IMPLS:
        found = best_bias(a, m, target, norm=norm, most_alarms=most, impl=impl)
        bias, hits, alarms, csa, lo, hi = only(found)
        assert (hits, alarms) == accuracy(a, m, target, bias, norm)[:2]
        assert alarms <= most and hits == best
        assert csa == float(accuracy(a, m, target, bias, norm)[2])
        if best == 0:
            assert alarms == 0 and bias == min(0.0, steps[0])
            continue
        equal = [s for s, h in admissible.items() if h == best]
        if any(s[0] < 0 <= s[1] for s in equal):
            assert bias == 0
        else:
            assert max(lo, -hi) == min(max(s[0], -s[1]) for s in equal)
            assert bias == (lo + 1 if hi == float("inf") else (lo + hi) / 2)


@pytest.mark.parametrize("most", [None, 0, 3, 40, 699])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_and_implementations_agree(norm, most):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(16, 700, generator=g).round(decimals=1)
    m = torch.randn(700, generator=g).round(decimals=1)
    target = torch.rand(700, generator=g) < 0.05
    a[::2, target] += 2
    how = {"norm": norm, "most_alarms": most}
    batch = best_bias(a, m, target, **how, impl="numba")
    for left, right in zip(batch, best_bias(a, m, target, **how, impl="torch"), strict=True):
        assert torch.equal(left, right)
    for row in range(16):
        assert only(best_bias(a[row], m, target, **how)) == tuple(p[row].item() for p in batch)
    per_row = best_bias(a, m.expand(16, -1), target.expand(16, -1), **how)
    assert torch.equal(per_row.bias, batch.bias)


def test_no_grid_and_no_gradient_training_beats_it():
    g = torch.Generator().manual_seed(1)
    target = torch.arange(400) < 20
    a = torch.randn(400, generator=g) + 4 * target
    m = torch.randn(400, generator=g) + 1.0
    best = torch.stack([best_bias(a, m, target, norm=norm).csa[0] for norm in NORMS])
    assert (best > 0).all()
    steps = m.double() - a.double()

    def exact(b):  # CSA under every norm at the biases b [..., 1]
        hits = (steps[target] < b).sum(-1).double()
        alarms = (steps[~target] < b).sum(-1).double()
        parts = [alarms / 20, alarms / 380, alarms / (hits + alarms).clamp(min=1)]
        return hits[..., None] / 20 - torch.stack(parts, -1)

    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    assert (exact(grid[:, None]) <= best + 1e-12).all()
    bias = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)  # one a norm
    optimiser = torch.optim.Adam([bias], lr=0.02)
    for _ in range(2000):
        soft = torch.sigmoid((bias - steps) * 20)
        hits, alarms = soft[:, target].sum(1), soft[:, ~target].sum(1)
        norms = torch.stack([torch.tensor(20.0), torch.tensor(380.0), (hits + alarms)[2].detach()])
        optimiser.zero_grad()
        (alarms / norms - hits / 20).sum().backward()
        optimiser.step()
        assert (exact(bias.detach()).diagonal() <= best + 1e-12).all()
    assert (exact(bias.detach()).diagonal() > best - 0.2).all()  # the training did train


@pytest.mark.parametrize("impl", IMPLS)
def test_half_open_intervals_and_edges(impl):
    def fit(a, target, norm="target"):
        zero = torch.zeros(len(a), dtype=torch.float64)
        a = torch.tensor(a, dtype=torch.float64)
        return only(best_bias(a, zero, torch.tensor(target), norm=norm, impl=impl))

    # a step of exactly 0 is not passed by b = 0 (strictly greater): b must move above it
    assert fit([0.0], [True]) == (1.0, 1, 0, 1.0, 0.0, float("inf"))
    assert fit([0.0, -1.0], [True, False]) == (0.5, 1, 0, 1.0, 0.0, 1.0)
    # 0 is the closed end of (-2, 0]
    assert fit([2.0, 0.0], [True, False]) == (0.0, 1, 0, 1.0, -2.0, 0.0)
    # equal steps are one group: the hit cannot be had without the false alarm
    assert fit([1.0, 1.0], [True, False])[:4] == (-1.0, 0, 0, 0.0)
    assert fit([1.0, 1.0], [True, False], "predicted")[3] == 0.5
    # neighbouring floats: the midpoint would round back onto lo
    above = torch.nextafter(torch.tensor(1.0).double(), torch.tensor(2.0).double()).item()
    assert fit([-1.0, -above], [True, False])[0] == above
    # an unbounded interval at a step so large that + 1 is lost
    bias, hits, *_ = fit([-1e300], [True])
    assert bias > 1e300 and hits == 1
    # two equally good intervals at the same distance: the lower
    both = fit([5.0, 4.0, 4.0, -4.0, -4.0, -5.0], [True, False, False, True, True, False])
    assert both[:3] == (-4.5, 1, 0)
    # more images than can be hit without harm, and nothing below all steps
    assert fit([-1.0, -0.5, -0.5], [True, False, False])[:4] == (0.0, 0, 0, 0.0)
    assert fit([-1.0], [True], "other")[3] == 1.0  # no other image at all


@pytest.mark.parametrize("impl", IMPLS)
def test_refuses_what_has_no_answer(impl):
    a, m = torch.zeros(2, 3), torch.zeros(3)
    target = torch.tensor([True, False, False])
    with pytest.raises(ValueError, match="no target"):
        best_bias(a, m, torch.zeros(3, dtype=torch.bool), impl=impl)
    with pytest.raises(ValueError, match="no target"):
        best_bias(torch.zeros(1, 0), torch.zeros(0), torch.zeros(0, dtype=torch.bool), impl=impl)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            best_bias(a + bad, m, target, impl=impl)
    with pytest.raises(ValueError, match="norm"):
        best_bias(a, m, target, norm="all", impl=impl)
    for most in (-1, 2.5, 2.0, float("nan"), "2"):
        with pytest.raises(ValueError, match="most_alarms=.*a whole number, 0 or more"):
            best_bias(a, m, target, most_alarms=most, impl=impl)
    whole = best_bias(a, m, target, most_alarms=np.int64(1), impl=impl)
    assert whole.bias.equal(best_bias(a, m, target, most_alarms=1, impl=impl).bias)
    with pytest.raises(ValueError, match="margin_max"):
        best_bias(a, m[:2], target, impl=impl)
    with pytest.raises(ValueError, match="bool"):
        best_bias(a, m, target.int(), impl=impl)


def test_bfloat16_and_float64_activations_are_compared_in_float64():
    target = torch.tensor([True, False])
    a = torch.tensor([1.0, 1.0 - 2**-40], dtype=torch.float64)
    assert best_bias(a, torch.full((2,), 2.0).double(), target).csa.item() == 1.0
    half = best_bias(torch.tensor([1.0, -1.0], dtype=torch.bfloat16), torch.zeros(2), target)
    assert half.bias.dtype == torch.float64 and half.csa.item() == 1.0


def test_is_a_custom_operator_with_a_fake():
    a, m, target = torch.randn(3, 9), torch.randn(9), torch.arange(9) < 2
    checks = ("test_schema", "test_faketensor")
    for most in (None, 2):
        args = (a, m, target, "target", most, True)
        torch.library.opcheck(torch.ops.circuitcore.best_bias, args, test_utils=checks)
