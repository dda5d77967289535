"""`sweep --impl triton` runs through the Triton kernels, whole, and finds the circuit of torch.

The interpreter stands in for a GPU: what reaches no kernel here would reach none there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sweep_tiny
from command import masks
from PIL import Image
from sweep_tiny import swept

import circuitcore

pytest.importorskip("triton", reason="Triton exists on Linux only")

CHILD = Path(sweep_tiny.__file__)
SMALL = {
    "scoring_images": 2, "extraction_images": 4, "heldout_images": 4, "device": "cpu",
    "fc_levels": "0,0.4,0.8", "conv_levels": "0,0.3,0.7", "threshold": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three categories of 6 x 6 pixels: one bright column, left, middle or right."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index, name in enumerate(("left", "middle", "right")):
        for split, count in (("train", 2), ("val", 8)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (6, 6), dtype=np.uint8)
                pixels[:, 2 * index : 2 * index + 2] += 150
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


SWEEPS = {
    "weights": ({}, "score_conv_wgrad_kernel"),
    "kernels": (
        {"granularity": "kernel", "stop": "sparsest-above"}, "score_conv_map_kernel"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def interpreted(images, tmp_path_factory):
    """By name in SWEEPS: (document, masks by layer, launches by kernel) of one category."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    folders = {name: tmp_path_factory.mktemp(name) for name in SWEEPS}
    children = {
        name: subprocess.Popen(
            [sys.executable, "-P", CHILD, images, folders[name] / "run",
             folders[name] / "launches.json",
             json.dumps(SMALL | {"impl": "triton"} | options)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name, (options, _) in SWEEPS.items()
    }  # fmt: skip
    found = {}
    for name, child in children.items():
        _, error = child.communicate(timeout=600)
        assert child.returncode == 0, error[-3000:]
        launches = json.loads((folders[name] / "launches.json").read_text())
        run = folders[name] / "run"
        found[name] = circuitcore.open_run(run)["middle"].record, masks(run), launches
    return found


@pytest.mark.parametrize("name", list(SWEEPS))
def test_triton_finds_the_circuit_of_torch(name, interpreted, images, tmp_path):
    options, scoring = SWEEPS[name]
    ours, ours_by_layer, launches = interpreted[name]
    run = swept(images, tmp_path / "run", **SMALL, impl="torch", **options)
    theirs, theirs_by_layer = run["middle"].record, masks(tmp_path / "run")
    assert ours_by_layer.keys() == theirs_by_layer.keys()
    for layer, bits in ours_by_layer.items():
        assert np.array_equal(bits, theirs_by_layer[layer]), layer
    assert ours.circuit.kept_weights == theirs.circuit.kept_weights
    assert 0 < ours.circuit.pruned < 1
    for stage, other in zip(ours.stages, theirs.stages, strict=True):
        assert len(stage.levels) == 3
        for field in ("chosen", "relevant_weights", "tied_zero"):
            assert getattr(stage, field) == getattr(other, field)
        for level, same in zip(stage.levels, other.levels, strict=True):
            unbiased = {"bias": 0.0}
            assert level.model_copy(update=unbiased) == same.model_copy(update=unbiased)
            assert level.bias == pytest.approx(same.bias, abs=1e-4)
    # every step of the method went through its kernel, at each of its levels and layers
    assert launches[scoring] >= 2, launches  # two convolutions
    assert launches["levels_range_kernel"] == 2  # only Linear layers are normalised
    if not options:
        assert launches["levels_histogram_kernel"] >= 4 and launches["levels_byte_kernel"] == 4
    assert launches["masked_linear_kernel"] >= 2
