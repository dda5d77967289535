"""The level kernels in the interpreter: the bytes of the CPU path, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.levels import gpu, gpu_select
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels, score_range
from circuitcore.kernels.score_linear.gpu import LinearTile

SMALL = LinearTile(rows=2, columns=16)


def draw(random: np.random.Generator, shape: tuple[int, int], distinct: int) -> LayerScores:
    weight = torch.from_numpy(random.integers(-3, 4, shape).astype(np.float32)) / 4
    norm = {"offset": float(random.integers(-2, 3)), "scale": float(random.choice([1.0, 0.3]))}
    left, right = (
        torch.from_numpy(random.integers(-distinct, distinct + 1, (3, n)) * 0.1).float()
        for n in shape
    )
    form = random.choice(["abs", "signed", "set", "values"])
    if form == "values":
        values = torch.from_numpy(random.integers(-distinct, distinct + 1, shape) * -0.5)
        return LayerScores(weight, values.float(), **norm)
    if form == "abs":
        left, right = left.abs(), right.abs()
    return LayerScores(weight, left=left, right=right, form=form, **norm)


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_bytes_equal_the_sort(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 36)), min_size=1, max_size=2)
    )
    distinct = data.draw(st.integers(0, 5))
    layers = [draw(random, shape, distinct) for shape in shapes]
    total = sum(layer.weight.numel() for layer in layers)
    counts = [0, *sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))]
    ties = data.draw(st.sampled_from(["weight", "snap"]))
    levels, reached, zero = gpu_select.select(layers, counts, ties, SMALL)
    expected = assign_levels(layers, counts, ties=ties, impl="torch")
    assert reached == expected.counts and zero == expected.zero
    assert all(torch.equal(a, b) for a, b in zip(levels, expected.levels, strict=True))


def test_the_launchers_own_tiles_on_continuous_scores() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(21, 300, generator=random) * 0.01
    left = torch.randn(4, 21, generator=random).relu()
    right = torch.randn(4, 300, generator=random).relu()
    layers = [
        LayerScores(weight, left=left, right=right, form="abs", scale=3.7),
        LayerScores(weight[:1], left=left[:, :1], right=right, form="signed", offset=-0.01),
        LayerScores(weight.view(21, 3, 10, 10), weight.view(21, 3, 10, 10) ** 3),
    ]
    total = sum(layer.weight.numel() for layer in layers)
    counts = [0, *(total - round(total * k) for k in np.geomspace(1, 0.001, 12)[1:])]
    for impl in ("numba", "torch"):
        expected = assign_levels(layers, counts, impl=impl)
        got = assign_levels(layers, counts, impl="triton")
        assert got.counts == expected.counts and got.zero == expected.zero
        assert all(torch.equal(a, b) for a, b in zip(got.levels, expected.levels, strict=True))
    for layer in layers:
        low, high, sum_abs = score_range(layer, impl="triton")
        expected_range = score_range(layer, impl="torch")
        assert (low, high) == expected_range[:2]
        assert sum_abs == pytest.approx(expected_range[2], rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    values = torch.zeros(3, 5)
    values[1, 2] = bad
    layer = LayerScores(torch.ones(3, 5), values)
    with pytest.raises(ValueError, match="not finite"):
        score_range(layer, impl="triton")
    with pytest.raises(ValueError, match="not finite"):
        assign_levels([layer], [0, 3], impl="triton")


def test_all_kept_all_pruned_and_all_tied() -> None:
    layer = LayerScores(torch.ones(4, 6), torch.zeros(4, 6))
    for counts in ([], [0, 0], [0, 24], [0, 7, 7, 24]):
        got = assign_levels([layer], counts, impl="triton").levels[0]
        assert torch.equal(got, assign_levels([layer], counts, impl="torch").levels[0])


@pytest.mark.parametrize("room", [3, 1000])
def test_without_a_wait_bytes_hold_where_ties_have_room(room, monkeypatch) -> None:
    """A selection that nobody waits for: full ties are counted, and listed while there is room."""
    monkeypatch.setattr(gpu_select, "ROOM", room)
    weight = torch.ones(12, 20)
    values = torch.arange(240).view(12, 20).div(60, rounding_mode="floor")  # 60 of each
    tied = LayerScores(weight, values=values)
    counts = [0, 30, 100, 240]
    layers = [gpu.prepared(tied, SMALL)]
    guard = gpu_select.unwaited(layers, gpu_select.Asked.of(counts, weight.device), "weight")
    told = guard.numbers.tolist()
    assert told[:4] == counts and told[4] == 0 and told[5] == 120 and told[7] == 60
    want = assign_levels([tied], counts, ties="weight", impl="torch")
    if room > 120:
        assert torch.equal(guard.flat[:240].view(12, 20), want.levels[0])
