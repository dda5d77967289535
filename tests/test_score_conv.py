"""score_conv against its definition in float64, for every option and odd geometries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels import score_conv as op

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
    exact = op.score_conv_reference(*arguments, **options)
    torch.testing.assert_close(op.score_conv(*arguments, **options), exact)
    single = [t.float() for t in arguments]
    theirs = (op.score_conv_reference(*single, **options) - exact).abs().max()
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
