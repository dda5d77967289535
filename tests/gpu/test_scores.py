"""Scores and levels on a device: the CPU's scores within rounding, and its level bytes exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels, score_range
from circuitcore.kernels.score_conv import operation as score_conv
from circuitcore.kernels.score_conv.reference import GRANULARITIES
from circuitcore.kernels.score_linear import operation as score_linear
from circuitcore.kernels.score_linear.factors import MAGNITUDES

pytestmark = pytest.mark.gpu
CONVOLUTIONS = {  # AlexNet's: channels, filters, taps, size, geometry
    "conv1": (3, 64, 11, 224, {"stride": (4, 4), "padding": (2, 2)}),
    "conv2": (64, 192, 5, 27, {"padding": (2, 2)}),
    "conv3": (192, 384, 3, 13, {"padding": (1, 1)}),
    "grouped": (16, 48, 3, 9, {"groups": 3, "dilation": (2, 1), "stride": (1, 2)}),
}


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("shape", [(4096, 9216), (1, 4096), (17, 1001)])
def test_linear_scores_are_the_cpus_bits(magnitude: str, shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=random)
    x, g = (torch.randn(4, n, generator=random) for n in (shape[1], shape[0]))
    expected = score_linear.score_linear(weight, x, g, magnitude=magnitude)
    got = score_linear.score_linear(weight.cuda(), x.cuda(), g.cuda(), magnitude=magnitude)
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_convolution_scores(layer: str, magnitude: str, granularity: str) -> None:
    channels, filters, taps, size, geometry = CONVOLUTIONS[layer]
    random = torch.Generator().manual_seed(0)
    groups = geometry.get("groups", 1)
    weight = torch.randn(filters, channels, taps, taps, generator=random)
    x = torch.randn(3, channels * groups, size, size, generator=random)
    g = torch.randn(torch.conv2d(x, weight, None, **geometry).shape, generator=random)
    options = {"magnitude": magnitude, "granularity": granularity, **geometry}
    exact = score_conv.score_conv(*(t.double() for t in (weight, x, g)), **options)
    theirs = (score_conv.score_conv(weight, x, g, **options) - exact).abs().max()
    got = score_conv.score_conv(weight.cuda(), x.cuda(), g.cuda(), **options)
    again = score_conv.score_conv(weight.cuda(), x.cuda(), g.cuda(), **options)
    assert torch.equal(got, again)
    assert (got.cpu() - exact).abs().max() <= 2 * theirs + 1e-6 * exact.abs().max()


def layers(device: str, rows: int, columns: int) -> list[LayerScores]:
    random = torch.Generator().manual_seed(0)
    made = []
    for shape in ((rows, columns), (rows, rows), (1, rows)):
        weight = torch.randn(shape, generator=random) * 0.01
        left = torch.randn(4, shape[0], generator=random) * torch.bernoulli(
            torch.full((4, shape[0]), 0.4), generator=random
        )
        right = torch.randn(4, shape[1], generator=random).relu()
        made.append(
            LayerScores(
                weight.to(device), left=left.abs().to(device), right=right.to(device), scale=7.3
            )
        )
    values = torch.randn(64, 3, 11, 11, generator=random)
    made.append(LayerScores(values.to(device), values.to(device).round(), offset=-1.0))
    return made


@pytest.mark.parametrize("ties", ["weight", "snap"])
@pytest.mark.parametrize("size", [(4096, 9216), (100, 333)])
def test_level_bytes_are_the_cpus(size: tuple[int, int], ties: str) -> None:
    here, there = layers("cpu", *size), layers("cuda", *size)
    total = sum(layer.weight.numel() for layer in here)
    counts = [0, *(total - round(total * k) for k in np.geomspace(1, 0.001, 32)[1:])]
    expected = assign_levels(here, counts, ties=ties)
    got = assign_levels(there, counts, ties=ties)
    assert (got.counts, got.zero) == (expected.counts, expected.zero)
    for a, b in zip(got.levels, expected.levels, strict=True):
        assert a.is_cuda and torch.equal(a.cpu(), b)
    for a, b in zip(there, here, strict=True):
        assert score_range(a)[:2] == score_range(b)[:2]
        assert score_range(a)[2] == pytest.approx(score_range(b)[2], rel=1e-12)


def test_nothing_of_a_weights_size_is_written_but_the_bytes() -> None:
    there = layers("cuda", 4096, 9216)[:1]
    assign_levels(there, [0, 1000])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assign_levels(there, [0, 1000])
    assert torch.cuda.max_memory_allocated() - before < 1.5 * there[0].weight.numel()


def test_scores_that_are_not_finite_are_refused() -> None:
    values = torch.zeros(300, 70, device="cuda")
    values[200, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        assign_levels([LayerScores(torch.ones_like(values), values)], [0, 3])
