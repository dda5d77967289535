"""Whole sweeps of the bundled network on pretended devices give the CPU's circuits."""

import numpy as np
import pytest
from command import masks
from pretend.device import pretended

import circuitcore

FEW = {"scoring_images": 4, "extraction_images": 20, "heldout_images": 20}
LEVELS = {"fc_levels": "0,0.5,0.9,0.99", "conv_levels": "0,0.5,0.9"}


def swept(out, device, categories=("Trouser",), **options):
    return circuitcore.sweep(
        out=out, device=device, categories=list(categories), **{**FEW, **LEVELS, **options}
    )


def same(one, other, bias=1e-5):
    """Equal masks, hits and false alarms at every level, biases within rounding."""
    for name in one:
        here, there = one[name].record, other[name].record
        for left, right in zip(here.stages, there.stages, strict=True):
            assert left.chosen == right.chosen and left.threshold_csa == right.threshold_csa
            for a, b in zip(left.levels, right.levels, strict=True):
                assert (a.kept_weights, a.hit, a.false_alarms) == (
                    b.kept_weights, b.hit, b.false_alarms,
                )  # fmt: skip
                assert a.bias == pytest.approx(b.bias, abs=bias)
        assert here.circuit.heldout.hit == there.circuit.heldout.hit
        assert here.circuit.heldout.false_alarms == there.circuit.heldout.false_alarms
    found, wanted = masks(one.folder), masks(other.folder)
    assert found.keys() == wanted.keys()
    for key in found:
        assert np.array_equal(found[key], wanted[key]), key


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("cpu") / "run", "cpu", impl="torch")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_bundled_sweep(device, on_cpu, tmp_path):
    with pretended() as cuda:
        run = swept(tmp_path / "run", device)
        kernels = {name for name, _ in cuda.counts.triton}
    same(run, on_cpu)
    assert {"levels_byte_kernel", "score_conv_wgrad_kernel"} <= kernels
    assert cuda.memory.now.total() == 0, "the run is over: nothing of it is on a device"
