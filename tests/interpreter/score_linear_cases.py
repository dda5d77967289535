"""score_linear's kernel in the interpreter: tile edges, every magnitude, views, poisoned output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.score_linear import operation as op
from circuitcore.kernels.score_linear.factors import MAGNITUDES
from circuitcore.kernels.score_linear.gpu import LinearTile
from circuitcore.kernels.score_linear.reference import score_linear_reference

SMALL = LinearTile(rows=2, columns=8)


def make(o: int, i: int, n: int, seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = ((o, i), (n, i), (n, o))
    return [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]


@settings(deadline=None, max_examples=8)
@given(
    o=st.integers(1, 7),
    i=st.integers(1, 20),
    n=st.integers(1, 5),
    magnitude=st.sampled_from(MAGNITUDES),
    seed=st.integers(0, 99),
)
def test_equals_torch_bit_for_bit(o: int, i: int, n: int, magnitude: str, seed: int) -> None:
    weight, x, g = (t.float() for t in make(o, i, n, seed))
    left, right, form = op.linear_factors(x, g, magnitude)
    expected = op.score_from_factors(weight, left, right, form)
    assert torch.equal(op._launch(weight, left, right, form, SMALL), expected)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_the_launchers_own_tile_against_float64(magnitude: str) -> None:
    double = make(19, 517, 4, 1)
    exact = score_linear_reference(*double, magnitude=magnitude)
    torch.testing.assert_close(op.score_linear(*double, magnitude=magnitude, impl="triton"), exact)
    single = [t.float() for t in double]
    theirs = (op.score_linear(*single, magnitude=magnitude, impl="torch") - exact).abs().max()
    ours = (op.score_linear(*single, magnitude=magnitude, impl="triton") - exact).abs().max()
    assert ours <= 2 * theirs + 1e-6


def test_views_and_an_output_that_was_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, g = (t.float() for t in make(6, 10, 3, 2))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    wide = torch.stack([weight, weight], 1)[:, 0]
    got = op.score_linear(wide, x, g, impl="triton")
    assert torch.equal(got, op.score_linear(weight, x, g, impl="torch"))
