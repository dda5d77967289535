"""All-pairs popcount against boolean arithmetic."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.overlap import operation as overlap
from circuitcore.kernels.overlap.operation import (
    overlap_cost,
    overlap_counts,
    overlap_counts_mapped,
)


def masks(count, bits, density=0.3, seed=0):
    """Packed uint8 [K, B] and the same as booleans [K, bits]."""
    kept = np.random.default_rng(seed).random((count, bits)) < density
    return torch.from_numpy(np.packbits(kept, axis=1)), torch.from_numpy(kept)


def expected(kept):
    return kept.double() @ kept.double().T


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 13), st.integers(0, 700), st.floats(0, 1), st.sampled_from(["torch", "numba"])
)
def test_counts_are_those_of_booleans(count, bits, density, impl):
    packed, kept = masks(count, bits, density)
    intersection, sizes = overlap_counts(packed, impl)
    assert intersection.dtype == sizes.dtype == torch.int64
    assert torch.equal(intersection.double(), expected(kept))
    assert torch.equal(sizes, kept.sum(1))


@pytest.mark.parametrize("count", [3, 65, 130])
@pytest.mark.parametrize("nbytes", [8 * 512, 8 * 512 + 13, 20_001])
def test_blocks_and_tiles(count, nbytes):
    packed, kept = masks(count, nbytes * 8)
    assert torch.equal(overlap_counts(packed)[0].double(), expected(kept))


def test_rows_need_not_be_contiguous():
    packed, kept = masks(12, 8 * 300)
    assert torch.equal(overlap_counts(packed[::3])[0].double(), expected(kept[::3]))
    part = packed[:, 5:105]
    assert torch.equal(overlap_counts(part)[0].double(), expected(kept[:, 40:840]))


@pytest.mark.parametrize("memory", [1, 1000, 1 << 20])
def test_mapped_masks_are_read_in_blocks(tmp_path, memory):
    packed, kept = masks(5, 8 * 1003)
    packed.numpy().tofile(tmp_path / "masks")
    mapped = np.memmap(tmp_path / "masks", np.uint8, "r", shape=(5, 1003))
    intersection, sizes = overlap_counts_mapped(mapped, memory=memory)
    assert torch.equal(intersection.double(), expected(kept))
    files = [np.memmap(tmp_path / "masks", np.uint8, "r", 1003 * k, (1003,)) for k in range(5)]
    assert torch.equal(overlap_counts_mapped(files, memory=memory)[0], intersection)
    assert torch.equal(sizes, kept.sum(1))


def test_mapped_masks_hold_no_more_than_they_may():
    rows = [np.zeros(100_000, np.uint8) for _ in range(7)]
    blocks = list(overlap._column_blocks(rows, 70_000))
    assert all(block.nbytes <= 70_000 for block in blocks)
    assert sum(block.nbytes for block in blocks) == 700_000  # every byte read once


def test_refuses_other_shapes_and_types():
    with pytest.raises(ValueError, match="uint8"):
        overlap_counts(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="uint8"):
        overlap_counts(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="length"):
        overlap_counts_mapped([np.zeros(3, np.uint8), np.zeros(4, np.uint8)])


def test_cost_counts_each_mask_once_and_each_pair_once():
    assert overlap_cost(64, 4 * 1000) == (64 * 4000, 64 * 65 // 2 * 1000)


def test_is_a_custom_operator_with_a_fake():
    packed, _ = masks(3, 100)
    args = (packed, "numba")
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.circuitcore.overlap, args, test_utils=checks)


def test_the_package_imports_nothing_heavy_until_a_name_is_used():
    program = """
import sys
import circuitcore.kernels as kernels
assert not {"torch", "triton", "numba", "kernels", "cli"} & set(sys.modules)
from circuitcore.kernels import best_bias, overlap
from types import ModuleType
assert isinstance(best_bias, ModuleType) and isinstance(overlap, ModuleType)
assert all(getattr(kernels, name) is not None for name in kernels._HOME)
assert isinstance(kernels.best_bias, ModuleType) and "numba" not in sys.modules
assert "_HOME" in dir(kernels) and not hasattr(kernels, "nonsense")
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd="/")
