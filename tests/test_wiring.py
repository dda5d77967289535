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
from PIL import Image

pytest.importorskip("triton", reason="Triton exists on Linux only")

CHILD = Path(__file__).parent / "wiring" / "sweep_tiny.py"
COUNTS = ("--scoring-images", "2", "--extraction-images", "4", "--heldout-images", "4")
GRID = ("--fc-levels", "0,0.4,0.8", "--conv-levels", "0,0.3,0.7", "--threshold", "0.5")


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


def sweep(images, folder, impl, *options):
    """(document, masks by layer, launches by kernel) of one category."""
    launches = folder / "launches.json"
    command = [sys.executable, "-P", str(CHILD), str(images), str(launches), "middle"]
    command += ["--images", str(images), "--out", str(folder / "run"), "--device", "cpu"]
    command += [*COUNTS, *GRID, *options, "--impl", impl, "--format", "json"]
    interpret = "1" if impl == "triton" else "0"
    environment = os.environ | {"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    from circuitcore.circuitfile import packed_masks
    from circuitcore.store import open_run

    (unit,) = open_run(folder / "run").units().values()
    return json.loads(done.stdout), packed_masks(unit), json.loads(launches.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "scoring"),
    [
        ((), "score_conv_wgrad_kernel"),
        (("--granularity", "kernel", "--stop", "sparsest-above"), "score_conv_map_kernel"),
    ],
    ids=["weights", "kernels"],
)
def test_triton_finds_the_circuit_of_torch(options, scoring, images, tmp_path):
    found = {}
    for impl in ("triton", "torch"):
        (tmp_path / impl).mkdir()
        found[impl] = sweep(images, tmp_path / impl, impl, *options)
    document, masks, launches = found["triton"]
    expected, expected_masks, none = found["torch"]
    assert none == {}
    assert masks.keys() == expected_masks.keys()
    for layer, bits in masks.items():
        assert np.array_equal(bits, expected_masks[layer]), layer
    (ours,), (theirs,) = document["categories"], expected["categories"]
    assert ours["circuit"]["kept_weights"] == theirs["circuit"]["kept_weights"]
    assert 0 < ours["circuit"]["pruned"] < 1
    for stage, other in zip(ours["stages"], theirs["stages"], strict=True):
        assert len(stage["levels"]) == 3
        for name in ("chosen", "relevant_weights", "tied_zero"):
            assert stage[name] == other[name]
        for level, same in zip(stage["levels"], other["levels"], strict=True):
            assert {**level, "bias": 0} == {**same, "bias": 0}
            assert level["bias"] == pytest.approx(same["bias"], abs=1e-4)
    # every step of the method went through its kernel, at each of its levels and layers
    assert launches[scoring] >= 2, launches  # two convolutions
    assert launches["levels_range_kernel"] == 4
    if not options:
        assert launches["levels_histogram_kernel"] >= 4 and launches["levels_byte_kernel"] == 4
    assert launches["masked_conv2d_kernel"] >= 2
    masked = ("masked_linear_plain_kernel", "masked_linear_packed_kernel")
    assert sum(launches.get(kernel, 0) for kernel in masked) >= 2
