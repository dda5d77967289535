"""The overlap kernel's tiles, splits and column blocks against boolean arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.overlap import gpu as overlap
from circuitcore.kernels.overlap.gpu import OverlapConfig
from circuitcore.kernels.overlap.operation import overlap_counts

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


def test_one_launch_a_block_of_columns(monkeypatch):
    launches = []

    class Counted:
        def __getitem__(self, grid):
            def launch(words, *rest, **named):
                launches.append((grid, words.numel() * 4))
                return kernel[grid](words, *rest, **named)

            return launch

    kernel = overlap.overlap_pairs_kernel
    monkeypatch.setattr(overlap, "overlap_pairs_kernel", Counted())
    monkeypatch.setattr(overlap, "BLOCK_BYTES", 6 * 128)
    packed, kept = masks(6, 640)
    assert torch.equal(overlap._launch(packed, SMALL).double(), kept @ kept.T)
    assert len(launches) == 5  # 640 bytes in blocks of 128
    # 3 x 2 tiles of 2 x 4 pairs, less the one wholly below the diagonal; each byte read once
    assert all(grid[0] == 5 for grid, _ in launches)
    assert sum(size for _, size in launches) == packed.numel()
