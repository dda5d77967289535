"""One circuit's pass: from the boundary where it can be, and the same from the images."""

from dataclasses import replace

import pytest
import torch

from circuitcore.engine.passes import activations, circuit_pass
from circuitcore.engine.prepare import prepare
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.progress import Silent


@pytest.fixture(scope="module")
def prepared():
    options = Options(heldout_images=10)
    return prepare(read_inputs(options), options, machine(options), Silent())


def masks(network, conv):
    random = torch.Generator().manual_seed(0)
    fc = set(network.layers("fc"))
    return {
        name: torch.rand(network.relevant_shape(name), generator=random)
        < (0.5 if name in fc else conv)
        for name in network.layers()
    }


@pytest.mark.parametrize("conv", [0.7, 1.0])
def test_held_out_images_start_from_the_boundary_where_no_convolution_is_pruned(prepared, conv):
    kept, split = masks(prepared.runner.network, conv), prepared.heldout
    assert split.features and len(next(iter(split.features.values()))) == len(split)
    short, long = Tally(), Tally()
    found = activations(prepared.runner, split, 3, kept, short)
    whole = activations(prepared.runner, replace(split, features={}), 3, kept, long)
    assert (found - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (short.multiply_adds < long.multiply_adds / 2) == (conv == 1.0)


def test_some_images_are_what_they_are_among_all(prepared):
    kept = masks(prepared.runner.network, 0.8)
    run = circuit_pass(prepared.runner, prepared.extraction, 1, kept)
    some = torch.randperm(len(prepared.extraction))[:13].numpy()
    whole = activations(prepared.runner, prepared.extraction, 1, kept)
    assert (run(some) - whole[some]).abs().max() <= 1e-5 * whole.abs().max()
