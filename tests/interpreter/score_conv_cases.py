"""score_conv's kernels in the interpreter: every option, odd geometries, poisoned outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.score_conv import gpu as kernels
from circuitcore.kernels.score_conv import operation as op
from circuitcore.kernels.score_conv.reference import GRANULARITIES, score_conv_reference
from circuitcore.kernels.score_linear.factors import MAGNITUDES

SMALL_WGRAD = kernels.WgradTile(16, 16, 16)
SMALL_MAP = kernels.MapTile(16, 16, 16)


@pytest.fixture(autouse=True)
def _outputs_start_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))


def make(
    n: int, channels: int, filters: int, size: tuple[int, int], taps: tuple[int, int],
    groups: int = 1, seed: int = 0, **geometry: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters * groups, channels, *taps, generator=random, dtype=torch.float64)
    x = torch.randn(n, channels * groups, *size, generator=random, dtype=torch.float64)
    out = torch.nn.functional.conv2d(x, weight, None, groups=groups, **geometry)
    return weight, x, torch.randn(out.shape, generator=random, dtype=torch.float64)


def check(arguments: tuple[torch.Tensor, ...], **options: Any) -> None:
    exact = score_conv_reference(*arguments, **options)
    single = [t.float() for t in arguments]
    theirs = (op.score_conv(*single, impl="torch", **options) - exact).abs().max()
    scores = op.score_conv(*single, impl="triton", **options)
    assert scores.dtype == torch.float32 and scores.shape == exact.shape
    assert (scores - exact).abs().max() <= 2 * theirs + 1e-6 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_every_option(magnitude: str, granularity: str) -> None:
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    check(
        make(2, 2, 3, (6, 5), (2, 2), groups=2, **geometry),
        magnitude=magnitude,
        granularity=granularity,
        groups=2,
        **geometry,
    )


@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_tile_edges(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    geometry = op.Geometry(stride=pair(1, 3), padding=pair(0, 1))
    options = {"stride": geometry.stride, "padding": geometry.padding}
    weight, x, g = make(
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 18)),
        data.draw(st.integers(1, 18)),
        pair(3, 6),
        pair(1, 3),
        **options,
    )
    x, g = torch.cat([x, x])[::2][: len(g)], g  # not contiguous
    x = x.contiguous(memory_format=torch.channels_last)
    single = [t.float() for t in (weight, x, g)]
    for flags in ({}, {"abs_position": True}, {"abs_image": True}):
        got = kernels.wgrad(*single, geometry, tile=SMALL_WGRAD, **flags)
        expected = op.library.wgrad(weight, x, g, geometry, **flags)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    got = kernels.kernel_position(*single, geometry, tile=SMALL_MAP)
    expected = op.library.kernel_position(weight, x, g, geometry)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [(3, 3), (5, 4)])
def test_the_launchers_own_tiles(taps: tuple[int, int]) -> None:
    arguments = make(2, 17, 5, (9, 9), taps) if taps == (3, 3) else make(1, 2, 5, (9, 9), taps)
    for granularity in ("weight", "kernel"):
        check(arguments, granularity=granularity)


def test_images_in_one_chunk_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(5, 2, 3, (5, 5), (2, 2))
    for programs in (1, 8, 1000):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        check(arguments, magnitude="image")
        check(arguments, granularity="kernel")
