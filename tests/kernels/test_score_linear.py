"""score_linear against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.score_linear import operation as op
from circuitcore.kernels.score_linear.reference import score_linear_reference

MAGNITUDES = ("position", "image", "set", "signed")


def make(o: int, i: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    weight, x, g = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((o, i), (n, i), (n, o))
    )
    return weight, x.clamp(min=0), g * (torch.rand(n, o, generator=random) < 0.6)


@settings(deadline=None, max_examples=40)
@given(
    o=st.integers(1, 20),
    i=st.integers(1, 20),
    n=st.integers(1, 6),
    magnitude=st.sampled_from(MAGNITUDES),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_definition(o: int, i: int, n: int, magnitude: str, seed: int) -> None:
    double = make(o, i, n, seed)
    single = [t.float() for t in double]
    exact = score_linear_reference(*double, magnitude=magnitude)
    torch.testing.assert_close(op.score_linear(*double, magnitude=magnitude), exact)
    theirs = (score_linear_reference(*single, magnitude=magnitude) - exact).abs().max()
    scores = op.score_linear(*single, magnitude=magnitude)
    assert scores.dtype == torch.float32
    assert (scores - exact).abs().max() <= 2 * theirs + 1e-6


def test_factors_are_the_scores() -> None:
    weight, x, g = make(7, 5, 4)
    left, right, form = op.linear_factors(x, g, "position")
    assert form == "abs" and left.shape == (4, 7) and right.shape == (4, 5)
    torch.testing.assert_close(
        weight.abs() * (left.T @ right), op.score_linear(weight, x, g, magnitude="image")
    )


def test_half_precision_arguments_give_float32_and_views_are_taken() -> None:
    weight, x, g = (t.half() for t in make(6, 8, 3))
    wide = torch.cat([weight, weight])[::2]
    assert op.score_linear(wide, x, g).dtype == torch.float32
    torch.testing.assert_close(op.score_linear(wide, x, g), op.score_linear(wide.clone(), x, g))


def test_arguments_are_not_changed() -> None:
    arguments = make(3, 4, 2)
    before = [t.clone() for t in arguments]
    op.score_linear(*arguments, magnitude="set")
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@pytest.mark.parametrize("bad", ["magnitude", "images", "weight", "none"])
def test_bad_arguments_are_refused(bad: str) -> None:
    weight, x, g = make(3, 4, 2)
    with pytest.raises(ValueError):
        if bad == "magnitude":
            op.score_linear(weight, x, g, magnitude="l2")
        elif bad == "images":
            op.score_linear(weight, x[:1], g)
        elif bad == "none":
            op.score_linear(weight, x[:0], g[:0])
        else:
            op.score_linear(weight.T, x, g)
