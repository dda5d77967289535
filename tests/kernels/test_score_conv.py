"""score_conv against its definition in float64, for every option and odd geometries."""

from __future__ import annotations

from typing import Any

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.score_conv import operation as op
from circuitcore.kernels.score_conv.reference import score_conv_reference

MAGNITUDES = ("position", "image", "set", "signed")
GRANULARITIES = ("weight", "kernel", "filter")


def make(
    n: int = 2,
    channels: int = 3,
    filters: int = 4,
    size: tuple[int, int] = (7, 6),
    taps: tuple[int, int] = (3, 2),
    groups: int = 1,
    seed: int = 0,
    **geometry: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight, x, g in float64; channels and filters are numbers a group."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters * groups, channels, *taps, generator=random, dtype=torch.float64)
    x = torch.randn(n, channels * groups, *size, generator=random, dtype=torch.float64)
    out = torch.nn.functional.conv2d(x, weight, None, groups=groups, **geometry)
    g = torch.randn(out.shape, generator=random, dtype=torch.float64)
    return weight, x.clamp(min=-0.2), g


def check(arguments: tuple[torch.Tensor, ...], **options: Any) -> None:
    exact = score_conv_reference(*arguments, **options)
    torch.testing.assert_close(op.score_conv(*arguments, **options), exact)
    single = [t.float() for t in arguments]
    theirs = (score_conv_reference(*single, **options) - exact).abs().max()
    scores = op.score_conv(*single, **options)
    assert scores.dtype == torch.float32 and scores.shape == exact.shape
    assert (scores - exact).abs().max() <= 2 * theirs + 1e-6 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_every_option(magnitude: str, granularity: str) -> None:
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    for groups in (1, 2):
        arguments = make(groups=groups, **geometry)
        for spatial in ("sum", "mean"):
            check(
                arguments,
                magnitude=magnitude,
                granularity=granularity,
                spatial=spatial,
                groups=groups,
                **geometry,
            )


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_odd_shapes(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    taps, dilation = pair(1, 4), pair(1, 2)
    geometry = {"stride": pair(1, 4), "padding": pair(0, 2), "dilation": dilation}
    size = [
        data.draw(st.integers((t - 1) * d + 1, 12)) for t, d in zip(taps, dilation, strict=True)
    ]
    groups = data.draw(st.integers(1, 2))
    arguments = make(
        n=data.draw(st.integers(1, 3)),
        channels=data.draw(st.integers(1, 3)),
        filters=data.draw(st.integers(1, 5)),
        size=(size[0], size[1]),
        taps=taps,
        groups=groups,
        **geometry,
    )
    check(
        arguments,
        magnitude=data.draw(st.sampled_from(MAGNITUDES)),
        granularity=data.draw(st.sampled_from(GRANULARITIES)),
        groups=groups,
        **geometry,
    )


def test_depthwise_and_non_contiguous_arguments() -> None:
    weight, x, g = make(channels=1, filters=2, groups=5, padding=(1, 1))
    x = x.to(memory_format=torch.channels_last)
    g = torch.cat([g, g])[::2].flip(0)[: len(x)]
    for granularity in GRANULARITIES:
        check((weight, x, g), granularity=granularity, groups=5, padding=(1, 1))


# channels and filters a group, groups: lanes full or not of channels, of filters, of pairs of both
LANES = [(16, 3, 1), (21, 2, 2), (3, 18, 1), (2, 16, 2), (1, 1, 20), (2, 3, 9)]


@pytest.mark.parametrize("channels, filters, groups", LANES)
def test_kernels_in_lanes_at_few_or_all_of_many_positions(
    channels: int, filters: int, groups: int
) -> None:
    geometry = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}
    weight, x, g = make(2, channels, filters, (19, 41), (3, 2), groups, **geometry)
    random = torch.Generator().manual_seed(1)
    for share in (0.0, 0.3, 1.0):
        some = g * (torch.rand(g.shape, generator=random) < share)
        check((weight, x, some), granularity="kernel", groups=groups, **geometry)


@pytest.mark.parametrize("channels, filters, groups", LANES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("argument", ["weight", "x", "g"])
def test_what_is_not_finite_reaches_the_scores(
    argument: str, value: float, channels: int, filters: int, groups: int
) -> None:
    weight, x, g = make(2, channels, filters, (7, 9), groups=groups)
    g[:, :, ::2] = 0
    target = {"weight": weight, "x": x, "g": g}[argument]
    target[-1, -1, 2, 1] = value
    if value == 1e300:  # 0 times a map that overflows is NaN
        (x if argument == "weight" else weight).mul_(1e20)
    options = {"granularity": "kernel", "groups": groups}
    for dtype in (torch.float64, torch.float32):
        arguments = [t.to(dtype) for t in (weight, x, g)]
        exact = score_conv_reference(*arguments, **options)
        assert not exact.isfinite().all()
        torch.testing.assert_close(op.score_conv(*arguments, **options), exact, equal_nan=True)


@pytest.mark.parametrize("channels, filters, groups", LANES)
def test_any_number_of_threads_gives_the_same_bits(
    channels: int, filters: int, groups: int
) -> None:
    arguments = [t.float() for t in make(3, channels, filters, (20, 30), groups=groups)]
    threads, scores = numba.get_num_threads(), []
    try:
        for number in (1, threads, threads):
            numba.set_num_threads(number)
            scores.append(op.score_conv(*arguments, granularity="kernel", groups=groups))
    finally:
        numba.set_num_threads(threads)
    for again in scores[1:]:
        assert torch.equal(again, scores[0])


def test_signed_is_the_weight_times_its_gradient() -> None:
    weight, x, g = make(padding=(1, 0))
    weight.requires_grad_(True)
    (torch.nn.functional.conv2d(x, weight, padding=(1, 0)) * g).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        op.score_conv(weight, x, g, padding=(1, 0), magnitude="signed"),
        weight.detach() * weight.grad / len(x),
    )


@pytest.mark.parametrize(
    "options",
    [{"magnitude": "l2"}, {"granularity": "layer"}, {"spatial": "max"}, {"groups": 3},
     {"padding": (1, 1)}],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        op.score_conv(*make(), **options)
