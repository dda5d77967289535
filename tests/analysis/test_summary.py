"""Means over categories: a ratio of means has a positive one below it, or is none."""

import pytest
from made_up import category, sweep

from circuitcore.analysis.summary import NO_RATIO, counted_interval, summarise
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


def test_intervals_of_means_draw_categories_and_images():
    document = sweep(tuple(f"category {i}" for i in range(12)))
    some = [
        each.model_copy(update={"circuit": each.circuit.model_copy(update={
            "heldout": each.circuit.heldout.model_copy(update={
                "hit": hit / 30, "false_alarms": alarms, "false_alarm": alarms / 330,
                "csa": hit / 30 - alarms / 330})})})
        for each, hit, alarms in zip(document.categories, [30, 12] * 6, [0, 33] * 6, strict=True)
    ]  # fmt: skip
    run = document.run | {"images": {"heldout": 360}}
    found = summarise(some, run)
    low, high = found.mean_heldout_hit_ci95
    spread = ((0.3**2) / 12 + (0.4 * 0.6 / 30) / 2 / 12) ** 0.5  # of categories, of images in them
    assert found.mean_heldout_hit == pytest.approx(0.7) and low < 0.7 < high
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    at_csa = found.mean_heldout_csa_ci95
    assert at_csa[0] < found.mean_heldout_csa < at_csa[1]
    # a false alarm that costs as much as a hit earns: 33 of them are more than all 30 hits
    cost = run | {"options": {"false_alarm_norm": "target"}}
    lower = counted_interval([each.circuit.heldout for each in some], cost)
    assert lower[1] < at_csa[1] and lower[0] < at_csa[0] - 0.5
    assert summarise(some).mean_heldout_csa_ci95 is None
    shown = sweep_text(document.model_copy(update={"summary": found}), "table")
    assert f"CSA {at_csa[0]:.3f} to {at_csa[1]:.3f}" in shown
