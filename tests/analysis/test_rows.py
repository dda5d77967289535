"""Records as flat rows: the same columns whatever a category has, and nothing lost."""

import pytest
from made_up import category, sweep
from scipy.stats import norm

from circuitcore.analysis.rows import Judged, category_row, flat, rows_of


def test_a_category_without_a_circuit_has_the_same_columns():
    defined, undefined = category(1, "a"), category(2, "b", defined=False)
    judged = Judged(30, 180)
    row, other = category_row(defined, judged), category_row(undefined, judged)
    assert list(row) == list(other)
    assert row["pruned"] == defined.circuit.pruned and other["pruned"] is None
    assert (row["csa_ratio_low"], row["csa_ratio_high"]) == defined.circuit.heldout.csa_ratio_ci95
    assert other["csa_ratio_low"] is None and other["unpruned_heldout_csa"] is not None


def test_nesting_and_intervals_become_columns():
    row = {"a": {"b": 1, "c": {"d": 2}}, "e_ci95": (3, 4), "f_ci95": None, "g": [5]}
    assert flat(row) == {"a_b": 1, "a_c_d": 2, "e_low": 3, "e_high": 4, "f_low": None,
                         "f_high": None, "g": [5]}  # fmt: skip


def test_d_prime_and_precision_are_of_the_counts():
    document = sweep()
    judged = Judged.of(document.run)
    assert judged == (30, 180)
    row = rows_of(document.categories, document.run)[0]
    # made up: 0.9 x 30 = 27 hits and 1 false alarm of the unpruned network
    wanted = norm.isf((1 + 0.5) / 181) - norm.isf((27 + 0.5) / 31)
    assert row["unpruned_heldout_d_prime"] == pytest.approx(wanted)
    assert row["unpruned_heldout_biased_precision"] == pytest.approx(27 / 28)
    assert row["heldout_d_prime"] < row["unpruned_heldout_d_prime"]
    none = rows_of(sweep(undefined=("Trouser",)).categories, document.run)[0]
    assert none["heldout_d_prime"] is None and none["heldout_precision"] is None
    assert none["unpruned_heldout_d_prime"] == pytest.approx(wanted)
