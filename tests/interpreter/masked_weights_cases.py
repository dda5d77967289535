"""The kernel that masks weights at several levels against plain torch; pruned ones are NaN."""

import pytest
import torch

from circuitcore.kernels.masked_weights.operation import masked_weights
from circuitcore.kernels.masked_weights.reference import masked_weights_reference


@pytest.mark.parametrize("size", [1, 100, 2048, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_at_levels(size, dtype):
    random = torch.Generator().manual_seed(size)
    level = torch.randint(0, 10, (size,), generator=random).byte()
    weight = torch.randn(size, generator=random).to(dtype)
    weight[level <= 2] = torch.nan  # pruned at every level asked for
    ts = torch.tensor([9, 2, 7, 3, 255], dtype=torch.int32)
    for asked in (ts, ts[1:], ts[:1]):
        found = masked_weights(weight, level, asked, impl="triton")
        assert torch.equal(found, masked_weights_reference(weight, level, asked))
        assert not found.isnan().any()


def test_into_a_buffer():
    weight, level = torch.randn(3, 700), torch.arange(2100).view(3, 700).byte()
    out = torch.full((1, 3, 700), 5.0)
    masked_weights(weight, level, torch.tensor([100], dtype=torch.int32), out, impl="triton")
    assert torch.equal(out[0], torch.where(level > 100, weight, 0))
    mask = level > 7
    masked_weights(weight, mask, torch.tensor([0], dtype=torch.int32), out, impl="triton")
    assert torch.equal(out[0], torch.where(mask, weight, 0))
