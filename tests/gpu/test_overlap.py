"""The overlap kernel on a device."""

import numpy as np
import pytest
import torch

from circuitcore.kernels.overlap import gpu as overlap
from circuitcore.kernels.overlap.operation import overlap_counts, overlap_counts_mapped

pytestmark = pytest.mark.gpu


def masks(count, nbytes):
    packed = np.random.default_rng(count).integers(0, 256, (count, nbytes), dtype=np.uint8)
    return torch.from_numpy(packed)


@pytest.mark.parametrize("count", [1, 3, 64, 130])
@pytest.mark.parametrize("nbytes", [0, 1, 2047, 2048, 100_003])
def test_counts_are_those_of_the_cpu(count, nbytes):
    packed = masks(count, nbytes)
    wanted = overlap_counts(packed, "numba")
    found = overlap_counts(packed.cuda())
    for left, right in zip(found, wanted, strict=True):
        assert left.is_cuda and torch.equal(left.cpu(), right)
    torch_path = overlap_counts(packed[:8].cuda(), "torch")[0]
    assert torch.equal(torch_path.cpu(), wanted[0][:8, :8])


def test_column_blocks(monkeypatch):
    monkeypatch.setattr(overlap, "BLOCK_BYTES", 100_000)
    packed = masks(17, 70_001)
    assert torch.equal(overlap_counts(packed.cuda())[0].cpu(), overlap_counts(packed)[0])


def test_views_and_mapped_masks():
    packed = masks(10, 9000)
    part = packed[::2, 11:8011]
    assert torch.equal(
        overlap_counts(packed.cuda()[::2, 11:8011])[0].cpu(), overlap_counts(part)[0]
    )
    mapped = overlap_counts_mapped(packed.numpy(), memory=4096, device="cuda")
    assert torch.equal(mapped[0], overlap_counts(packed)[0])


def test_counts_past_31_bits():
    """A mask of 2**32 kept weights: partial counts fit 32 bits, their sum does not."""
    packed = torch.full((1, 1 << 29), 255, dtype=torch.uint8, device="cuda")
    assert overlap_counts(packed)[0].item() == 1 << 32
