"""Levels against a plain numpy.lexsort of the same float32 scores: equality, not closeness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.levels.layer import LayerScores, normalised, raw_scores
from circuitcore.kernels.levels.operation import assign_levels, assign_unit_levels, score_range
from circuitcore.kernels.levels.reference import assign_levels_reference

IMPLS = ("torch", "auto")


def by_lexsort(layers: list[LayerScores], counts: list[int], ties: str) -> list[np.ndarray]:
    """Every layer's level bytes by the definition, and nothing clever."""
    keys = np.concatenate([normalised(raw_scores(layer), layer).numpy() for layer in layers])
    sizes = np.concatenate([layer.weight.float().abs().flatten().numpy() for layer in layers])
    order = np.lexsort((np.arange(len(keys)), sizes, keys))
    kept = np.zeros(len(keys), dtype=np.uint8)
    for count in counts:
        if ties == "snap" and count:
            count = int((keys <= keys[order[count - 1]]).sum())
        kept[order[count:]] += 1
    return np.split(kept, np.cumsum([layer.weight.numel() for layer in layers])[:-1])


def check(layers: list[LayerScores], counts: list[int], impl: str, ties: str = "weight") -> None:
    got = assign_levels(layers, counts, ties=ties, impl=impl)
    for level, layer, expected in zip(
        got.levels, layers, by_lexsort(layers, counts, ties), strict=True
    ):
        assert level.dtype == torch.uint8 and level.shape == layer.weight.shape
        assert np.array_equal(level.flatten().numpy(), expected)
    flat = torch.cat([level.flatten() for level in got.levels])
    assert got.counts == tuple(int((flat <= t).sum()) for t in range(len(counts)))
    if ties == "weight":
        assert got.counts == tuple(counts)
    assert got.zero == tuple(int((raw_scores(layer) == 0).sum()) for layer in layers)


def draw_layers(random: np.random.Generator, distinct: int, shapes: list[tuple[int, ...]]) -> list:
    """Whole-numbered factors, scores and weights: few distinct values, so that ties abound."""
    layers = []
    for shape in shapes:
        weight = torch.from_numpy(random.integers(-3, 4, shape).astype(np.float32)) / 4
        options: dict[str, Any] = {}
        if random.random() < 0.5:
            options = {"offset": float(random.integers(-2, 3)), "scale": random.choice([0.0, 0.3])}
        if len(shape) == 2 and random.random() < 0.7:
            left, right = (
                torch.from_numpy(random.integers(-distinct, distinct + 1, (3, n)) * 0.1).float()
                for n in shape
            )
            form = random.choice(["abs", "signed", "set"])
            if form == "abs":
                left, right = left.abs(), right.abs()
            layers.append(LayerScores(weight, left=left, right=right, form=form, **options))
        else:
            values = random.integers(-distinct, distinct + 1, shape) * np.float32(-0.5)
            layers.append(LayerScores(weight, torch.from_numpy(values).float(), **options))
    return layers


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_equals_lexsort(impl: str, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(1, 9)),
    )
    layers = draw_layers(
        random, data.draw(st.integers(0, 6)), data.draw(st.lists(shape, min_size=1, max_size=4))
    )
    total = sum(layer.weight.numel() for layer in layers)
    counts = sorted(data.draw(st.lists(st.integers(0, total), max_size=12)))
    check(layers, [0, *counts], impl, data.draw(st.sampled_from(["weight", "snap"])))


@pytest.mark.parametrize("impl", IMPLS)
def test_continuous_scores_and_all_level_counts(impl: str) -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(60, 50, generator=random) * 0.01
    left, right = torch.randn(4, 60, generator=random).relu(), torch.randn(4, 50, generator=random)
    layers = [
        LayerScores(weight, left=left, right=right.relu(), form="abs", scale=3.7),
        LayerScores(weight[:1], left=left[:, :1], right=right, form="signed", offset=-0.01),
        LayerScores(torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2) * 1e-3),
    ]
    total = sum(layer.weight.numel() for layer in layers)
    check(layers, [0, total], impl)
    check(layers, [], impl)
    check(layers, [0, 0, 5, 5, 5, total, total], impl)
    check(layers, [round(total * t / 254) for t in range(255)], impl)
    check(layers, [round(total * t / 254) for t in range(255)], impl, "snap")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -2.0])
def test_equal_scores_fall_back_to_the_weight_then_the_index(impl: str, value: float) -> None:
    weight = torch.tensor([[0.5, -0.25, 0.25], [-0.0, 0.0, -1.0]])
    values = torch.full((2, 3), value)
    values[0, 0] = value * -1 if value == 0 else value  # -0.0 and 0.0 are one score
    level = assign_levels([LayerScores(weight, values)], [0, 1, 2, 3, 4, 6], impl=impl).levels[0]
    assert level.tolist() == [[5, 3, 4], [1, 2, 5]]
    snapped = assign_levels([LayerScores(weight, values)], [0, 1, 6], ties="snap", impl=impl)
    assert snapped.counts == (0, 6, 6) and snapped.levels[0].max() == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_across_layers_go_to_the_earlier_layer(impl: str) -> None:
    layers = [LayerScores(torch.ones(3), torch.zeros(3)) for _ in range(3)]
    got = assign_levels(layers, [0, 2, 4], impl=impl)
    assert [level.tolist() for level in got.levels] == [[1, 1, 2], [2, 3, 3], [3, 3, 3]]
    assert got.zero == (3, 3, 3)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(impl: str, bad: float) -> None:
    values = torch.zeros(4, 5)
    values[2, 3] = bad
    layer = LayerScores(torch.ones(4, 5), values)
    factored = LayerScores(
        torch.ones(4, 5), left=values[:, :1].T, right=torch.ones(1, 5), form="signed"
    )
    factored.left[0, 1] = bad  # type: ignore[index]
    everywhere = LayerScores(torch.ones(3), torch.full((3,), bad))
    for case in (layer, factored, everywhere):
        with pytest.raises(ValueError, match="not finite"):
            score_range(case, impl=impl)
        with pytest.raises(ValueError, match="not finite"):
            assign_levels([case], [0, 3], impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_range_is_that_of_the_raw_scores(impl: str) -> None:
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(33, 70, generator=random)
    left, right = torch.randn(4, 33, generator=random), torch.randn(4, 70, generator=random)
    for form in ("abs", "signed", "set"):
        layer = LayerScores(weight, left=left, right=right, form=form, offset=3, scale=9)
        raw = raw_scores(layer)
        low, high, total = score_range(layer, impl=impl)
        assert (low, high) == (float(raw.min()), float(raw.max()))
        assert total == pytest.approx(float(raw.double().abs().sum()), rel=1e-9)
    given = LayerScores(weight, weight * 2)
    assert score_range(given, impl=impl)[1] == float((weight * 2).max())
    with pytest.raises(ValueError):
        score_range(LayerScores(torch.ones(0, 3), torch.ones(0, 3)), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_and_views(impl: str) -> None:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(20, 31, generator=random).half().T
    left, right = torch.rand(2, 31, generator=random), torch.rand(2, 20, generator=random)
    layers = [LayerScores(weight, left=left, right=right), LayerScores(weight, weight.bfloat16())]
    check(layers, [0, 100, 700], impl)


def test_bad_arguments_are_refused() -> None:
    layer = LayerScores(torch.ones(3), torch.zeros(3))
    for counts in ([0, 2, 1], [0, 4], [-1, 2], [0] * 256):
        with pytest.raises(ValueError):
            assign_levels([layer], counts)
    with pytest.raises(ValueError):
        assign_levels([layer], [0], ties="index")
    for fields in (
        {},
        {"values": torch.zeros(2)},
        {"left": torch.ones(1, 3)},
        {"values": torch.zeros(3), "left": torch.ones(1, 3), "right": torch.ones(1, 1)},
        {"left": torch.ones(1, 2), "right": torch.ones(1, 1)},
        {"left": torch.ones(1, 3), "right": torch.ones(1, 1), "form": "l2"},
    ):
        with pytest.raises(ValueError):
            LayerScores(torch.ones(3), **fields)
    assert assign_levels([], [0, 0]).counts == (0, 0)


def test_units_take_the_nearest_whole_number() -> None:
    scores = torch.tensor([3.0, 0.0, -0.0, 1.0])
    key = torch.tensor([1.0, 2.0, 1.0, 1.0])
    sizes = torch.tensor([4, 4, 10, 4])
    level, reached = assign_unit_levels(scores, key, sizes, [0, 4, 5, 6, 12, 19, 22])
    # order: unit 2 (10 weights), 1 (14), 3 (18), 0 (22)
    assert reached == (0, 0, 0, 10, 10, 18, 22)
    assert level.tolist() == [6, 5, 3, 5]
    level, reached = assign_unit_levels(scores, key, sizes, [0, 10, 12], ties="snap")
    assert reached == (0, 14, 14) and level.tolist() == [3, 1, 1, 3]
    with pytest.raises(ValueError):
        assign_unit_levels(scores, key, sizes, [0, 23])
    with pytest.raises(ValueError):
        assign_unit_levels(scores * torch.nan, key, sizes, [0])


def test_reference_is_the_torch_path() -> None:
    layers = [LayerScores(torch.arange(6.0).view(2, 3), torch.zeros(2, 3))]
    assert torch.equal(
        assign_levels_reference(layers, [0, 3]).levels[0],
        assign_levels(layers, [0, 3], impl="torch").levels[0],
    )
