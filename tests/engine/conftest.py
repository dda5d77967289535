"""The bundled problem, prepared, and masks to try on it."""

import pytest

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
def masks(layer_masks):
    return layer_masks
