"""What the rows of faults share: the smallest sweep there is, swept in this very process."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import sweep_tiny
from command import masks
from PIL import Image

import circuitcore


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """Three categories of 6 x 6 pixels: one bright column, left, middle or right."""
    root = tmp_path_factory.mktemp("tiny") / "images"
    random = np.random.default_rng(0)
    for index, name in enumerate(sweep_tiny.CATEGORIES):
        for split, count in (("train", 2), ("val", 8)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (6, 6), dtype=np.uint8)
                pixels[:, 2 * index : 2 * index + 2] += 150
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny(tiny_images, tmp_path_factory):
    """``sweep(out, categories)``, its finished ``folder`` of two categories, and their masks."""
    model = sweep_tiny.tiny_model(tiny_images)

    def sweep(out, categories=("left", "middle"), **options):
        return circuitcore.sweep(
            model, tiny_images, categories=categories, out=out, **sweep_tiny.OPTIONS | options
        )

    folder = tmp_path_factory.mktemp("whole") / "run"
    run = sweep(folder)
    run.controls()
    run.report()

    def opened(out):
        return circuitcore.open_run(out, model, tiny_images)

    return SimpleNamespace(
        sweep=sweep, open=opened, folder=folder, masks=masks(folder), images=tiny_images
    )


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the finished run, to be spoiled."""
    return shutil.copytree(tiny.folder, tmp_path / "run")


@pytest.fixture(scope="session")
def same(tiny):
    """``same(folder)``: whether a run's masks are, byte for byte, those of the undisturbed one."""

    def compare(folder):
        found = masks(folder)
        assert found.keys() == tiny.masks.keys()
        for name, bits in tiny.masks.items():
            assert found[name].tobytes() == bits.tobytes(), name
        return True

    return compare


@pytest.fixture(scope="session")
def answers():
    """``answers(run)``: what is read of a run but for where it is and what it cost."""

    def read(run):
        document = json.loads(run.document.to_json())
        document["run"] = run.manifest
        document["images"] = list(run.images())
        for each in document["categories"]:
            del each["cost"]
        return document

    return read
