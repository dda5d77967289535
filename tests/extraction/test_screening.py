"""Screening against running everything: made-up margins of every kind, and the real network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.extraction.accuracy import SLACK, Judge, choose_level, worth
from circuitcore.extraction.bounds import Known, bounds, false_alarm_limit
from circuitcore.extraction.screening import Rule, Screening


class Problem:
    """Margins of N images at T levels that drift apart as a pruned network's do."""

    def __init__(
        self, seed, images=400, targets=20, levels=12, norm="target", drift=0.4, tie=False
    ):
        random = np.random.default_rng(seed)
        self.target = np.zeros(images, bool)
        self.target[random.permutation(images)[:targets]] = True
        margin = random.normal(4, 2, images)
        start = np.where(
            self.target, margin + random.normal(1, 2, images), -random.gamma(3, 2, images)
        )
        common = random.normal(0, drift, levels).cumsum()
        own = random.normal(0, drift, (levels, images)).cumsum(0)
        own[:, self.target] -= np.linspace(0, random.uniform(0, 6), levels)[:, None]
        rows = start + common[:, None] + own
        rows[0] = start
        if tie:
            rows, margin = rows.round(), margin.round()
        self.rows = torch.from_numpy(rows).float()
        self.judge = Judge(
            torch.from_numpy(margin), torch.from_numpy(self.target), self.rows[0], norm
        )
        self.runs = 0
        self.noise = 0.0
        self.random = random

    def look(self, levels, images, precise):
        self.runs += len(levels) * len(images)
        found = self.rows[list(levels)][:, images]
        if not precise:
            noise = self.random.uniform(-self.noise, self.noise, found.shape)
            found = found + torch.from_numpy(noise).float()
        return found

    def truth(self, bias):
        return [worth(record, bias) for record in self.judge.fitted(self.rows, bias)]

    def screening(self, stop, bias="exact", at_once=False, low=False, threshold=0.9):
        below = threshold * self.truth(bias)[0] - SLACK
        rule = Rule(below, stop, bias, at_once, low=low, risk=1e-5)
        return Screening(self.judge, self.rows[0], len(self.rows), self.look, rule)


problems = st.builds(
    Problem,
    seed=st.integers(0, 10**6),
    images=st.integers(60, 500),
    targets=st.integers(1, 30),
    levels=st.integers(2, 14),
    norm=st.sampled_from(["target", "other", "predicted"]),
    drift=st.sampled_from([0.0, 0.05, 0.4, 2.0]),
    tie=st.booleans(),
)


@given(problems, st.sampled_from(["matched", "exact", "none"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_from_the_sparse_end_it_chooses_what_running_everything_does(problem, bias, at_once):
    truth = problem.truth(bias)
    if truth[0] <= 0:
        return
    screening = problem.screening("sparsest-above", bias, at_once)
    chosen = screening.run()
    assert chosen == choose_level(truth, 0.9 * truth[0], "sparsest-above")
    assert screening.looked[chosen].all()
    assert torch.equal(screening.at(chosen), problem.rows[chosen])
    for t, judged in screening.judged.items():
        found = judged.bounds
        low, high = (worth(end, bias) for end in (found.low, found.high))
        assert low - 1e-12 <= truth[t] <= high + 1e-12
        low, high = found.csa_interval(problem.judge)
        csa = problem.judge.fitted(problem.rows[t : t + 1], bias)[0].csa
        assert low - 1e-12 <= csa <= high + 1e-12 or problem.judge.norm == "predicted"
        if judged.images == len(problem.target):
            assert worth(found.expected, bias) == truth[t]


@given(problems, st.sampled_from(["matched", "exact", "none"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_from_the_dense_end_rejections_are_exact_and_the_choice_is_certified(
    problem, bias, at_once
):
    truth = problem.truth(bias)
    if truth[0] <= 0:
        return
    screening = problem.screening("first-crossing", bias, at_once)
    chosen = screening.run()
    assert truth[chosen] >= screening.rule.below
    assert screening.looked[chosen].all()
    for t, judged in screening.judged.items():
        assert truth[t] <= worth(judged.bounds.high, bias) + 1e-12
        if judged.bounds.decided(screening.rule.below) is False:
            assert truth[t] < screening.rule.below
    assert chosen <= max(screening.judged)


@pytest.mark.parametrize("bias", ["matched", "exact"])
def test_first_crossing_agrees_where_images_move_smoothly_and_costs_less(bias):
    """The stated assumption holds here: no disagreement, and far fewer runs."""
    agreed = runs = whole = 0
    for seed in range(30):
        problem = Problem(seed, images=3000, targets=20, levels=16, drift=0.05)
        truth = problem.truth(bias)
        screening = problem.screening("first-crossing", bias)
        chosen = screening.run()
        agreed += chosen == choose_level(truth, 0.9 * truth[0], "first-crossing")
        runs += problem.runs
        whole += chosen + 1
    assert agreed == 30
    assert runs < 0.5 * whole * 3000


@given(
    problems,
    st.sampled_from(["matched", "exact"]),
    st.sampled_from(["sparsest-above", "first-crossing"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_low_precision_decides_as_float32_does(problem, bias, stop, everything):
    """Noise within the measured error never flips a level: close images are run again."""
    truth = problem.truth(bias)
    if truth[0] <= 0:
        return
    problem.noise = 0.05
    screening = problem.screening(stop, bias, low=True)
    if everything:
        screening.judge_all()
        for t in range(1, len(truth)):
            decided = screening.judged[t].bounds.decided(screening.rule.below)
            assert decided == (truth[t] >= screening.rule.below)
        return
    chosen = screening.run()
    record = screening.judged[chosen].bounds.expected  # certified: what float32 gives
    assert record == problem.judge.fitted(problem.rows[chosen : chosen + 1], bias)[0]
    if stop == "sparsest-above":
        assert chosen == choose_level(truth, 0.9 * truth[0], stop)


def test_a_close_image_is_recomputed_and_a_far_one_is_not():
    problem = Problem(3, images=300, targets=20, drift=0.05)
    problem.noise = 0.02
    seen = []
    plain = problem.look

    def look(levels, images, precise):
        if precise:
            seen.append(len(levels) * len(images))
        return plain(levels, images, precise)

    problem.look = look
    screening = problem.screening("sparsest-above", low=True)
    screening.judge_all()
    recomputed = sum(judged.recomputed for judged in screening.judged.values())
    assert 0 < recomputed < 0.3 * 300 * len(problem.rows)
    assert sum(seen) >= recomputed


def test_no_level_is_accepted_on_a_sample_that_does_not_show_its_bias_is_admissible():
    """Under a matched bias with few false alarms allowed no sample can: all are run or bounded."""
    problem = Problem(5, images=20000, targets=100, levels=6, norm="other", drift=0.3)
    screening = problem.screening("first-crossing", "matched")
    chosen = screening.run()
    truth = problem.truth("matched")
    assert problem.judge.unpruned_alarms < false_alarm_limit(0, 512, 19000, 1e-5)
    assert chosen == choose_level(truth, 0.9 * truth[0], "first-crossing")
    for t, judged in screening.judged.items():
        if judged.bounds.decided(screening.rule.below):
            assert judged.bounds.low.false_alarms <= problem.judge.unpruned_alarms
            assert worth(judged.bounds.low, "matched") <= truth[t] + 1e-12


def test_images_not_looked_at_bound_csa_from_both_sides():
    judge = Judge(
        torch.zeros(4), torch.tensor([True, True, False, False]), torch.zeros(4), "target"
    )
    activation = np.array([2.0, 1.0, -1.0, -3.0])
    looked = np.array([True, True, False, False])
    unknown = bounds(judge, Known(activation, np.array([0, 0, np.inf, np.inf]), looked), "exact")
    assert (unknown.low.csa, unknown.expected.csa, unknown.high.csa) == (0.0, 1.0, 1.0)
    near = bounds(judge, Known(activation, np.array([0, 0, 2.5, 2.5]), looked), "exact")
    assert near.low.csa == 0.5  # the third may come above the second, not above the first
    assert near.decided(0.4) is True and near.decided(0.7) is None and near.decided(1.1) is False


@pytest.mark.parametrize("unseen", [600, 5000])
@pytest.mark.parametrize("risk", [0.05, 1e-4])
def test_the_limit_of_a_sample_fails_no_oftener_than_stated(unseen, risk):
    """Exactly, by the hypergeometric distribution, at the worst numbers of false alarms."""
    from scipy.stats import hypergeom

    drawn = 200
    limits = np.array([false_alarm_limit(k, drawn, unseen, risk) for k in range(drawn + 1)])
    assert (np.diff(limits) >= 0).all() and limits[drawn] == unseen
    for alarms in sorted({*limits.tolist(), 1, 2, 5, unseen // 3}):
        missed = [k for k in range(drawn + 1) if limits[k] < alarms]
        chance = math.fsum(hypergeom.pmf(missed, unseen, alarms, drawn)) if missed else 0.0
        assert chance <= risk


def test_under_norm_other_a_sample_spares_most_images():
    problem = Problem(5, images=20000, targets=100, levels=8, norm="other", drift=0.5)
    screening = problem.screening("first-crossing", threshold=0.8)
    chosen = screening.run()
    truth = problem.truth("exact")
    assert chosen == choose_level(truth, 0.8 * truth[0], "first-crossing")
    between = [screening.judged[t].images for t in range(1, chosen)]
    assert between and max(between) < 4000


@pytest.mark.parametrize("stop", ["sparsest-above", "first-crossing"])
def test_the_bundled_example_gives_the_same_circuits(stop, prepared_small):
    """Every category: the same circuit as with every level run; disagreements counted."""
    from circuitcore.extraction.circuit import extract_circuit

    disagree = []
    for category in prepared_small.inputs.categories:
        found = {}
        for screen in ("off", "on"):
            options = replace(prepared_small.options, screen=screen, stop=stop)
            own = replace(prepared_small, options=options)
            found[screen] = extract_circuit(own, category.index, category.name)
        off, on = found["off"], found["on"]
        if not all(torch.equal(off.kept[name], on.kept[name]) for name in off.kept):
            disagree.append(category.name)
            continue
        ours, theirs = on.record.circuit, off.record.circuit
        # summed in another order, a step between two images may move by rounding
        assert ours.bias == pytest.approx(theirs.bias, abs=1e-5)
        for part in ("extraction", "heldout"):
            a, b = (getattr(each, part).model_dump() for each in (ours, theirs))
            assert {**a, "bias": 0} == {**b, "bias": 0}
        assert ours.kept_weights == theirs.kept_weights
        assert on.record.cost.multiply_adds < off.record.cost.multiply_adds
        for stage in off.record.stages:
            assert stage.planned_multiply_adds == stage.multiply_adds
    assert disagree == []


@pytest.fixture(scope="module")
def prepared_small():
    from circuitcore.engine.prepare import prepare
    from circuitcore.inputs.read import read_inputs
    from circuitcore.machine.device import machine
    from circuitcore.options import Options
    from circuitcore.progress import Silent

    options = Options(levels="12")
    return prepare(read_inputs(options), options, machine(options), Silent())
