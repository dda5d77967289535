"""Means over categories: a ratio of means has a positive one below it, or is none."""

import pytest
from made_up import category

from circuitcore.analysis.summary import summarise


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


def test_the_ratio_of_means():
    record = with_unpruned(0.5)
    found = summarise([record])
    assert found.ratio_of_means == found.ratio_of_means_unbiased
    assert found.ratio_of_means == record.circuit.heldout.csa / 0.5
