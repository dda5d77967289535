"""The trained AlexNet and its images, ready to sweep; skipped where Fashion-MNIST is missing.

Smaller runs, by environment: ``BENCH_E2E_IMAGES`` extraction images a category (default 100),
``BENCH_E2E_PIXELS`` (default 224), ``BENCH_E2E_LEVELS`` fc and conv levels (default ``32,16``),
``BENCH_E2E_STOP`` (default ``first-crossing``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # alexnet.py and contenders.py are no tests

from alexnet import image_folder, trained_alexnet  # noqa: E402

from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine  # noqa: E402
from circuitcore.options import Options  # noqa: E402
from circuitcore.progress import Silent  # noqa: E402

HELDOUT = 30


@pytest.fixture(scope="session")
def images_per_category() -> int:
    """Extraction images a category of the whole-size rows."""
    return int(os.environ.get("BENCH_E2E_IMAGES", "100"))


@pytest.fixture(scope="session")
def alexnet_prepared(tmp_path_factory, device, images_per_category) -> Callable[[int], Prepared]:
    """alexnet_prepared(extraction images a category) -> Prepared, decoded and run unpruned."""
    try:
        weights = trained_alexnet()
        most = max(images_per_category, 20)
        folder = image_folder(tmp_path_factory.mktemp("fashion"), 4, most + HELDOUT)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    pixels = int(os.environ.get("BENCH_E2E_PIXELS", "224"))
    fc_levels, conv_levels = os.environ.get("BENCH_E2E_LEVELS", "32,16").split(",")

    @cache
    def make(extraction: int) -> Prepared:
        options = Options(
            model=f"file:{weights}",
            arch="alexnet",
            images=str(folder),
            resize=pixels,
            crop=pixels,
            extraction_images=extraction,
            heldout_images=HELDOUT,
            fc_levels=fc_levels,
            conv_levels=conv_levels,
            stop=os.environ.get("BENCH_E2E_STOP", "first-crossing"),
            screen="off",
            dtype="float32",
            device=str(device) if device.type == "cpu" else "cuda:0",
        )
        return prepare(read_inputs(options), options, machine(options), Silent())

    return make
