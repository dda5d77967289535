"""Other stages on a pretended GPU: captured passes and masked kernels find the CPU's circuits.

Layers of a stage may lie in the flat buffer of a replay or beside it, behind the boundary or not.
"""

import pytest
import torch
from headed import convolutional, trained
from pretend.device import pretended
from sweeps import same
from torch import nn

import circuitcore

GRID = [0.0, 0.25, 0.5, 0.75, 0.9]


def classifying(outputs=10):
    """Two convolutions, a batch norm between them, and two Linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(),
        nn.Linear(16, outputs),
    )  # fmt: skip


def normed(outputs=10):
    """A head that a batch norm follows: of a target unit one of its channels is left."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3), nn.ReLU(), nn.Conv2d(6, 12, 3), nn.ReLU(),
        nn.Conv2d(12, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip


CASES = {
    "a head with a batch norm": (normed, {}),
    "a head in the stage of all": (convolutional, {"stages": "all=*"}),
    "its last layer first, one skipped": (
        convolutional, {"stages": "last=8;late=2,5", "skip": "0"},
    ),
    "three stages, one layer skipped": (
        classifying, {"stages": "head=8;hidden=6;conv=0,2", "skip": "2"},
    ),
    "convolutions and a Linear together": (classifying, {"stages": "head=8;rest=0,2,6"}),
}  # fmt: skip


@pytest.mark.parametrize("ablate", ["zero", "mean"])
@pytest.mark.parametrize("case", list(CASES))
def test_circuits_are_those_of_the_cpu(case, ablate, tmp_path):
    make, options = CASES[case]

    def swept(device):
        return circuitcore.sweep(
            trained(make)[1], "bundled", categories=["Bag"], out=tmp_path / device[:4],
            levels=GRID, device=device, dtype="float32", random_masks=0,
            ablate=ablate, **options,
        )  # fmt: skip

    there = swept("cpu")
    with pretended() as cuda:
        here = swept("cuda:0")
    assert cuda.touched == {0}
    same(here, there, bias=1e-3)
    for left, right in zip(here["Bag"].record.stages, there["Bag"].record.stages, strict=True):
        assert left.stage == right.stage
        assert left.planned_multiply_adds == left.multiply_adds
    assert torch.cuda.is_available() is False
