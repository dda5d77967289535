"""One circuit's pass: from the boundary where it can be, and the same from the images."""

from dataclasses import replace

import pytest
import torch

from circuitcore.engine.passes import activations, circuit_pass
from circuitcore.network.forward import Tally


@pytest.mark.parametrize("conv", [0.7, 1.0])
def test_held_out_images_start_from_the_boundary_if_no_convolution_is_pruned(prepared, masks, conv):
    kept, split = masks(prepared.runner.network, conv), prepared.heldout
    assert split.features and len(next(iter(split.features.values()))) == len(split)
    short, long = Tally(), Tally()
    found = activations(prepared.runner, split, 3, kept, short)
    whole = activations(prepared.runner, replace(split, features={}), 3, kept, long)
    assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (short.multiply_adds < long.multiply_adds / 2) == (conv == 1.0)


def test_some_images_are_what_they_are_among_all(prepared, masks):
    kept = masks(prepared.runner.network, 0.8)
    run = circuit_pass(prepared.runner, prepared.extraction, 1, kept)
    some = torch.randperm(len(prepared.extraction))[:13].numpy()
    whole = activations(prepared.runner, prepared.extraction, 1, kept)
    assert (run(some) - whole[some]).abs().max() <= 1e-5 * whole.abs().max()
