"""Means over categories: a ratio of means has a positive one below it, or is none."""

import pytest
from made_up import category, sweep

from circuitcore.analysis.summary import NO_RATIO, summarise
from circuitcore.cli.tables import sweep_text


def with_unpruned(csa):
    record = category(1, "a")
    accuracy = {"csa": csa}
    unpruned = record.unpruned.model_copy(
        update={
            "heldout": record.unpruned.heldout.model_copy(update=accuracy),
            "heldout_biased": record.unpruned.heldout_biased.model_copy(update=accuracy),
        }
    )
    return record.model_copy(update={"unpruned": unpruned})


@pytest.mark.parametrize("csa", [-1.0, 0.0])
def test_no_ratio_of_means_to_what_is_not_positive(csa):
    found = summarise([with_unpruned(csa)])
    assert found.ratio_of_means is None and found.ratio_of_means_unbiased is None


def test_circuits_without_a_ratio_are_counted_with_their_reason():
    record = category(1, "a")
    accuracy = record.circuit.heldout.model_copy(update={"csa_ratio_biased": None})
    circuit = record.circuit.model_copy(update={"heldout": accuracy})
    found = summarise([record, record.model_copy(update={"circuit": circuit})])
    assert found.undefined == {} and found.mean_csa_ratio == record.circuit.heldout.csa_ratio_biased
    assert found.undefined_heldout == {NO_RATIO: 1}
    shown = sweep_text(sweep().model_copy(update={"summary": found}), "table")
    assert f"1 with a circuit, {NO_RATIO}" in shown


def test_the_ratio_of_means():
    record = with_unpruned(0.5)
    found = summarise([record])
    assert found.ratio_of_means == found.ratio_of_means_unbiased
    assert found.ratio_of_means == record.circuit.heldout.csa / 0.5
