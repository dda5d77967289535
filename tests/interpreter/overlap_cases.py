"""The overlap kernel's tiles, splits and column blocks against boolean arithmetic."""

import numpy as np
import pytest
import torch
from circuitcore.kernels import overlap
from circuitcore.kernels.overlap import OverlapConfig, overlap_counts
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = OverlapConfig(rows_i=2, rows_j=4, words=16, num_warps=1)


def masks(count, nbytes, density=0.3):
    kept = np.random.default_rng(count).random((count, nbytes * 8)) < density
    return torch.from_numpy(np.packbits(kept, axis=1)), torch.from_numpy(kept).double()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 10), st.integers(0, 300), st.sampled_from([0.0, 0.3, 1.0]))
def test_counts(count, nbytes, density):
    packed, kept = masks(count, nbytes, density)
    assert torch.equal(overlap._launch(packed, SMALL).double(), kept @ kept.T)


def test_the_launchers_own_tile():
    packed, kept = masks(6, 5000)
    intersection, sizes = overlap_counts(packed, "triton")
    assert torch.equal(intersection.double(), kept @ kept.T)
    assert torch.equal(sizes.double(), kept.sum(1))


@pytest.mark.parametrize("block", [1, 500, 2000])
def test_column_blocks_add_up(monkeypatch, block):
    monkeypatch.setattr(overlap, "BLOCK_BYTES", block)
    packed, kept = masks(5, 401)
    assert torch.equal(overlap._launch(packed, SMALL).double(), kept @ kept.T)


def test_rows_that_are_not_contiguous_and_counts_that_were_garbage(monkeypatch):
    packed, kept = masks(9, 300)
    zeros = torch.zeros

    def poisoned(*shape, dtype=None, **where):
        # the kernel must write every partial count it is later read from
        fresh = zeros(*shape, dtype=dtype, **where)
        return fresh - 7 if dtype == torch.int32 else fresh

    part = packed[::2, 3:203]
    wanted = kept[::2, 24 : 203 * 8]
    monkeypatch.setattr(torch, "zeros", poisoned)
    counts = overlap._launch(part, SMALL)
    upper = (wanted @ wanted.T).triu()
    assert torch.equal(counts.double().triu(), upper)
