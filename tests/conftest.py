"""Shared by the tests: the float64 reference, the bundled network and images it runs on, a run."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from circuitcore.machine import process

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see `machine.process`
if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n`: a core each, theirs and their children's
    os.environ.setdefault("OMP_NUM_THREADS", "1")
process.return_large_blocks()  # as the command does, so that memory freed is seen to be free
sys.path[:0] = [str(Path(__file__).parent / name) for name in ("reference", "shared", ".")]


@pytest.fixture(scope="session")
def method() -> ModuleType:
    """The float64 reference of the whole method, `tests/reference/method.py`."""
    import method

    return method


@pytest.fixture(scope="session")
def example():
    """The bundled network in float32, its float64 copy, category names and image splits."""
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


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Two categories swept at a few levels: (arguments, document, run folder); copy to change."""
    from command import call

    folder = tmp_path_factory.mktemp("small") / "run"
    levels = ["--fc-levels", "0,0.5,0.9,0.99", "--conv-levels", "0,0.5,0.9"]
    arguments = ["sweep", "Trouser", "Bag", *levels]
    document = json.loads(call(*arguments, "--out", folder, "--format", "json").stdout)
    return SimpleNamespace(arguments=arguments, levels=levels, document=document, folder=folder)


@pytest.fixture(scope="module")
def own_small(small, tmp_path_factory):
    """A copy of `small` for a module whose tests leave something in the folder."""
    folder = shutil.copytree(small.folder, tmp_path_factory.mktemp("own") / "run")
    return SimpleNamespace(**{**vars(small), "folder": folder})


@pytest.fixture(scope="session")
def layer_masks():
    """layer_masks(network, conv): half of each fc layer, the fraction ``conv`` of a convolution."""

    def made(network, conv):
        import torch

        random = torch.Generator().manual_seed(0)
        fc = set(network.layers("fc"))
        return {
            name: torch.rand(network.relevant_shape(name), generator=random)
            < (0.5 if name in fc else conv)
            for name in network.layers()
        }

    return made


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory):
    """`sweeps.swept` in plain torch on the CPU: what a run on a device is held against."""
    from sweeps import swept

    return swept(tmp_path_factory.mktemp("cpu") / "run", "cpu", impl="torch")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium (`shared/browser.py`), started once; skipped where there is none."""
    from browser import started

    page = started()
    yield page
    page.driver.quit()
