"""``impl="triton"`` of the exact bias is the batched sort: it must accept what a sweep hands it."""

import pytest
import torch

from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import NORMS


@pytest.mark.parametrize("most", [None, 0, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_equal_to_the_cpu_path(norm, most):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5, 90, generator=g).round(decimals=1)
    m = torch.randn(90, generator=g).round(decimals=1)
    target = torch.arange(90) < 9
    a[:, target] += 2
    wanted = best_bias(a, m, target, norm=norm, most_alarms=most, impl="numba")
    for left, right in zip(
        best_bias(a, m, target, norm=norm, most_alarms=most, impl="triton"), wanted, strict=True
    ):
        assert torch.equal(left, right)
