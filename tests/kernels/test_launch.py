"""Launches go to their tensors' own device, and never past the limits of a grid."""

import pytest
import torch

from circuitcore.kernels.launch import launch


class Kernel:
    """Stands for a Triton kernel: remembers what it was launched with."""

    __name__ = "kernel"

    def __getitem__(self, grid):
        return lambda *arguments, **options: setattr(self, "seen", (grid, arguments, options))


def test_launches_with_all_it_was_given():
    kernel, x = Kernel(), torch.zeros(3)
    launch(kernel, (70000, 2, 3), x, 5, BLOCK=16)
    assert kernel.seen == ((70000, 2, 3), (x, 5), {"BLOCK": 16})


@pytest.mark.parametrize("grid", [(1, 65536), (1, 1, 65536), (2**31,)])
def test_a_grid_past_the_limits_is_refused_before_the_driver_is_asked(grid):
    kernel = Kernel()
    with pytest.raises(ValueError, match="grid"):
        launch(kernel, grid, torch.zeros(1))
    assert not hasattr(kernel, "seen")
