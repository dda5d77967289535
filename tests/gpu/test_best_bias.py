"""The exact bias on a device gives the CPU's very numbers."""

import pytest
import torch

from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import NORMS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("most", [None, 0, 7])
@pytest.mark.parametrize("norm", NORMS)
def test_equal_to_the_cpu(norm, most):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(32, 5000, generator=g).round(decimals=2)
    m = torch.randn(5000, generator=g).round(decimals=2)
    target = torch.rand(5000, generator=g) < 0.01
    a[::2, target] += 3
    found = best_bias(a.cuda(), m.cuda(), target.cuda(), norm=norm, most_alarms=most)
    for left, right in zip(
        found, best_bias(a, m, target, norm=norm, most_alarms=most), strict=True
    ):
        assert left.is_cuda and torch.equal(left.cpu(), right)
