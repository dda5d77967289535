"""The bundled problem, prepared, and masks to try on it."""

import pytest
import torch

from circuitcore.engine.prepare import prepare
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent


@pytest.fixture(scope="session")
def prepared():
    options = Options(heldout_images=10)
    return prepare(read_inputs(options), options, machine(options), Silent())


@pytest.fixture(scope="session")
def masks():
    """masks(network, conv): half of each fc layer's weights, and ``conv`` of each convolution's."""

    def made(network, conv):
        random = torch.Generator().manual_seed(0)
        fc = set(network.layers("fc"))
        return {
            name: torch.rand(network.relevant_shape(name), generator=random)
            < (0.5 if name in fc else conv)
            for name in network.layers()
        }

    return made
