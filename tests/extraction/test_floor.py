"""Random masks beside a circuit: drawn fairly, and judged as if every image had been run."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.accuracy import worth
from circuitcore.extraction.floor import at_random, random_mask, random_masks
from circuitcore.extraction.judging import judges
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.random_masks.reference import random_mask_reference
from circuitcore.machine.device import machine
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.progress import Silent


def on_cpu(size, count, seed):
    return at_random(size, count, np.random.default_rng(seed))


def as_on_gpu(size, count, seed):
    words = np.random.SeedSequence([seed, 3]).generate_state(2).tolist()
    return random_mask_reference(size, count, words, torch.device("cpu")).numpy()


@pytest.mark.parametrize("how", [on_cpu, as_on_gpu])
@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_exactly_so_many_are_kept(how, size, part, seed):
    count = round(part * size)
    mask = how(size, count, seed)
    assert mask.dtype == bool and mask.shape == (size,) and mask.sum() == count


@pytest.mark.parametrize("how", [on_cpu, as_on_gpu])
@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 1), (7, 6), (40, 13)])
def test_every_place_is_as_likely_and_pairs_are_too(how, size, count):
    drawn = 10_000
    masks = np.stack([how(size, count, seed) for seed in range(drawn)]).astype(float)
    p, q = count / size, count * (count - 1) / (size * (size - 1))
    both = masks.T @ masks / drawn
    off = 5 * np.sqrt(max(q, p / size) / drawn)
    assert np.abs(np.diag(both) - p).max() < 5 * np.sqrt(p * (1 - p) / drawn)
    assert np.abs(both - q)[~np.eye(size, dtype=bool)].max() < off


def prepared_with(**changes):
    options = Options(quiet=True, **changes)
    return prepare(read_inputs(options), options, machine(options), Silent())


@pytest.mark.parametrize("bias", ["matched", "exact", "none", "sgd"])
@pytest.mark.parametrize("norm", ["other", "target"])
def test_it_says_what_running_every_image_says(bias, norm):
    """Circuits of every worth are held against the same masks."""
    prepared = prepared_with(bias=bias, false_alarm_norm=norm, random_masks=2)
    network, unit = prepared.runner.network, 8
    judge, _ = judges(prepared, unit)
    densities = torch.Generator().manual_seed(0)
    kept = {
        name: torch.rand(network.relevant_shape(name), generator=densities) < 0.6
        for name in network.layers()
    }
    masks = [random_mask(prepared, unit, kept, draw) for draw in range(2)]
    assert any((masks[0][n] != masks[1][n]).any() for n in kept)
    whole = [activations(prepared.runner, prepared.extraction, unit, mask) for mask in masks]
    truth = judge.fitted(torch.stack(whole), bias)
    spared = []
    for hit, alarms in ((1.0, 0), (0.95, 0), (0.5, 3), (0.1, 1), (0.0, 0)):
        circuit = judge.record(round(20 * hit), alarms, 0.0)
        tally = Tally()
        found = random_masks(prepared, unit, kept, judge, circuit, tally)
        good = [worth(each, bias) >= worth(circuit, bias) - 1e-9 for each in truth]
        assert (found.masks, found.as_good) == (2, sum(good))
        assert found.hit_hi >= max(t.hit for t in truth) or bias != "matched"
        assert found.csa_hi >= max(t.csa for t in truth) - 1e-9
        assert tally.multiply_adds > 0
        spared.append(found.images)
    if bias == "matched":
        assert min(spared) < len(judge)


def test_none_is_none(small):
    """Where none is wanted nothing is run; where one is, the record says what it found."""
    prepared = prepared_with(random_masks=0)
    judge, _ = judges(prepared, 0)
    circuit = judge.record(20, 0, 0.0)
    assert random_masks(prepared, 0, {}, judge, circuit, Tally()) is None
    for category in small.document["categories"]:
        assert category["random_masks"]["masks"] == 1
        assert category["random_masks"]["as_good"] == 0
        cost = category["cost"]
        assert cost["fpe_floor"] > 0
        parts = cost["fpe_sweep"] + cost["fpe_certify"] + cost["fpe_heldout"]
        assert cost["fpe"] == pytest.approx(parts)
