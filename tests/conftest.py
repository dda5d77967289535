"""Shared by the tests: the float64 reference, and the bundled network and images it runs on."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see the command line's main
sys.path.insert(0, str(Path(__file__).parent / "reference"))


@pytest.fixture(scope="session")
def method() -> ModuleType:
    """The float64 reference of the whole method, `tests/reference/method.py`."""
    import method

    return method


@pytest.fixture(scope="session")
def example():
    """The bundled network in float32, its float64 copy, category names and image splits."""
    from types import SimpleNamespace

    import method

    from circuitcore.bundled import IMAGES
    from circuitcore.bundled.network import load_bundled

    network, categories, own = load_bundled()
    return SimpleNamespace(
        network=network,
        double=method.double(network),
        categories=list(categories),
        splits=method.load_images(IMAGES, categories, own.mean, own.std),
    )
