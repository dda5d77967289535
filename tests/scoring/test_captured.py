"""Scoring and ranking as a captured graph give what they give one launch after another."""

import pytest
import torch
from pretend.device import pretended

from circuitcore.engine.prepare import prepare
from circuitcore.errors import InputError
from circuitcore.extraction.stage import ranked, scored
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.levels import gpu_select
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring import captured
from circuitcore.scoring.levels import stage_levels


def prepared_with(**changes):
    options = Options(
        device="cuda:1", extraction_images=4, heldout_images=4, scoring_images=3, levels="5",
        **changes,
    )  # fmt: skip
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    if prepared.ranking is not None:
        prepared.ranking.note = pytest.fail  # no test passes because a graph was done without
    return prepared


def same_as_eager(prepared, unit):
    """Level bytes, counts and zeros are equal; what was ranked."""
    found, work = ranked(prepared, unit), scored(prepared, unit)
    for stage, mine in found.assigned.items():
        network = prepared.runner.network
        right = stage_levels(network, stage, work.found, unit, prepared.options)
        assert (mine.pruned, mine.relevant, mine.tied_zero) == (
            right.pruned, right.relevant, right.tied_zero,
        )  # fmt: skip
        assert mine.levels.keys() == right.levels.keys()
        for name, level in right.levels.items():
            assert torch.equal(mine.levels[name].cpu(), level.cpu()), name
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"criterion": "snip", "ties": "snap", "normalise": "l1"},
        {"magnitude": "image", "normalise": "none"},
        {"criterion": "weight-magnitude"},
        {"criterion": "ig", "steps": 2},
    ],
)
def test_one_category_after_another(options):
    with pretended() as cuda:
        prepared = prepared_with(**options)
        first = same_as_eager(prepared, 3)
        kept = {name: level.cpu() for name, level in first.assigned["fc"].levels.items()}
        for unit in (0, 7):
            cuda.counts.clear()
            ranked(prepared, unit)
            totals = cuda.counts.totals()
            assert totals["replays"] == totals["syncs"] == 1 and not totals["captures"]
            assert totals["torch launches"] + totals["triton launches"] <= 10
            same_as_eager(prepared, unit)
        # another category's replay leaves what was given before alone
        assert all(torch.equal(kept[n], first.assigned["fc"].levels[n].cpu()) for n in kept)


def test_more_ties_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(gpu_select, "ROOM", 2)
    with pretended():
        prepared = prepared_with()
        for weight in prepared.runner.network.weights.values():
            weight.copy_(weight.sign())  # all magnitudes are equal
        same_as_eager(prepared, 1)
        assert prepared.ranking.ranked(prepared.scoring_images(1), 1) is None


def test_another_number_of_images():
    with pretended() as cuda:
        prepared = prepared_with()
        ranked(prepared, 1)
        images = prepared.scoring_images(1)
        assert prepared.ranking.ranked(images[:2], 1) is None
        assert prepared.ranking.ranked(images, 1) is not None
        assert cuda.counts.captures == 1


def test_scores_that_are_not_finite_name_their_layer():
    with pretended():
        prepared = prepared_with()
        last = prepared.runner.network.last
        prepared.runner.network.weights[last][2, 0] = torch.inf
        first = prepared.runner.network.layers("fc")[0]  # its gradient is infinite with it
        with pytest.raises(InputError, match=first):
            ranked(prepared, 2)
        same_as_eager(prepared, 3)


def test_where_capturing_fails_scoring_goes_on(monkeypatch):
    told = []

    def refused(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "captured", refused)
    with pretended():
        prepared = prepared_with()
        prepared.ranking.note = told.append
        same_as_eager(prepared, 3)
        same_as_eager(prepared, 4)
    assert len(told) == 1 and "not permitted" in told[0]


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "random"},
        {"criterion": "lrp"},
        {"criterion": "ensemble"},
        {"granularity": "filter"},
    ],
)
def test_what_the_host_draws_or_decides_is_not_captured(options):
    with pretended() as cuda:
        prepared = prepared_with(**options)
        assert prepared.ranking is None
        ranked(prepared, 1)
        assert not cuda.counts.captures
