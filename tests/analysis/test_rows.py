"""Records as flat rows: the same columns whatever a category has, and nothing lost."""

from made_up import category

from circuitcore.analysis.rows import category_row, flat


def test_a_category_without_a_circuit_has_the_same_columns():
    defined, undefined = category(1, "a"), category(2, "b", defined=False)
    row, other = category_row(defined), category_row(undefined)
    assert list(row) == list(other)
    assert row["pruned"] == defined.circuit.pruned and other["pruned"] is None
    assert (row["csa_ratio_low"], row["csa_ratio_high"]) == defined.circuit.heldout.csa_ratio_ci95
    assert other["csa_ratio_low"] is None and other["unpruned_heldout_csa"] is not None


def test_nesting_and_intervals_become_columns():
    row = {"a": {"b": 1, "c": {"d": 2}}, "e_ci95": (3, 4), "f_ci95": None, "g": [5]}
    assert flat(row) == {"a_b": 1, "a_c_d": 2, "e_low": 3, "e_high": 4, "f_low": None,
                         "f_high": None, "g": [5]}  # fmt: skip
