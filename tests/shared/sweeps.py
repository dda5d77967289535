"""Sweeps of the bundled network at a few levels, and what two of them must have in common."""

import numpy as np
import pytest
from command import masks

import circuitcore

FEW = {"scoring_images": 4, "extraction_images": 20, "heldout_images": 20}
LEVELS = {"fc_levels": "0,0.5,0.9,0.99", "conv_levels": "0,0.5,0.9"}


def swept(out, device, categories=("Trouser",), dtype="float32", **options):
    return circuitcore.sweep(
        out=out, device=device, categories=list(categories), dtype=dtype,
        **{**FEW, **LEVELS, **options},
    )  # fmt: skip


def same(one, other, bias=1e-5):
    """Equal masks, hits and false alarms at every level, biases within rounding."""
    for name in other:
        here, there = one[name].record, other[name].record
        for left, right in zip(here.stages, there.stages, strict=True):
            assert left.chosen == right.chosen and left.threshold_csa == right.threshold_csa
            for a, b in zip(left.levels, right.levels, strict=True):
                assert (a.kept_weights, a.hit, a.false_alarms) == (
                    b.kept_weights, b.hit, b.false_alarms,
                )  # fmt: skip
                assert a.bias == pytest.approx(b.bias, abs=bias, rel=1e-6)
        assert here.circuit.heldout.hit == there.circuit.heldout.hit
        assert here.circuit.heldout.false_alarms == there.circuit.heldout.false_alarms
    found, wanted = masks(one.folder), masks(other.folder)
    assert found.keys() == wanted.keys()
    for key in found:
        assert np.array_equal(found[key], wanted[key]), key
