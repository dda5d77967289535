"""The kernels that draw random masks against the order of all hashes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.random_masks import gpu
from circuitcore.kernels.random_masks.layout import BLOCK, starts
from circuitcore.kernels.random_masks.operation import random_masks
from circuitcore.kernels.random_masks.reference import hashes, random_mask_reference

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The interpreter pays by the step: a histogram is searched in four."""
    monkeypatch.setattr(gpu, "STEP", 1 << 14)


def drawn(layers, words):
    """Masks by the kernels and by the reference."""
    counts = torch.tensor([count for _, count in layers], dtype=torch.int64)
    found = random_masks(counts, [size for size, _ in layers], words, impl="triton")
    wanted = [
        random_mask_reference(size, count, words[2 * k : 2 * k + 2], CPU)
        for k, (size, count) in enumerate(layers)
    ]
    return found, wanted


@settings(deadline=None, max_examples=3, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2 * BLOCK), st.floats(0, 1)), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_the_smallest_hashes_are_kept(parts, word):
    layers = [(size, round(part * size)) for size, part in parts]
    words = [(word + 77 * k) % 2**32 for k in range(2 * len(layers))]
    for mine, right in zip(*drawn(layers, words), strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("count", [0, 1, 4999, 5000])
def test_none_one_and_all(count):
    (mine,), (right,) = drawn([(5000, count)], [2**32 - 1, 1 << 31])
    assert int(mine.sum()) == count and torch.equal(mine, right)


def test_many_layers_some_empty():
    """Nine layers, more than a table of eight has room for; the first and the last are empty."""
    layers = [(k * 40, k * 7) for k in range(8)] + [(0, 0)]
    for mine, right in zip(*drawn(layers, list(range(18))), strict=True):
        assert torch.equal(mine, right)


def test_a_digit_that_many_share():
    """Where the low 16 bits decide: the cut falls among hashes of one high digit."""
    size = 40_000
    order = hashes(size, [3, 4], CPU).sort().values
    high = order >> 16
    count = int((high[1:] == high[:-1]).nonzero()[70]) + 1  # between two of one digit
    (mine,), (right,) = drawn([(size, count)], [3, 4])
    assert high[count] == high[count - 1] and torch.equal(mine, right)


def test_what_lies_behind_a_mask_is_no_place():
    counts = torch.tensor([9, 4])
    flat = gpu.launch_masks(counts, [9, 5], [1, 2, 3, 4])
    assert starts([9, 5]) == [0, BLOCK, 2 * BLOCK] and int(flat.sum()) == 13
