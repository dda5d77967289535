"""Levels of AlexNet's 57 million fully connected weights: 32 levels, ties by |weight| and index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from circuitcore.kernels.levels.layer import LayerScores, normalised, raw_scores
from circuitcore.kernels.levels.operation import assign_levels, score_range

SHAPES = ((4096, 9216), (4096, 4096), (1, 4096))  # fc6, fc7, one row of fc8
IMAGES = 4
LEVELS = 32


def make(device: torch.device) -> list[LayerScores]:
    """Factors like a trained network's: about 65 % of the scores are exactly 0."""
    random = torch.Generator().manual_seed(0)
    layers = []
    for rows, columns in SHAPES:
        weight = torch.randn(rows, columns, generator=random) * 0.01
        right = torch.randn(IMAGES, columns, generator=random).relu()
        right *= torch.rand(right.shape, generator=random) < 0.6
        left = torch.randn(IMAGES, rows, generator=random).abs() * 1e-2
        if rows > 1:
            left *= torch.rand(left.shape, generator=random) < 0.35
        layer = LayerScores(weight.to(device), left=left.to(device), right=right.to(device))
        low, high, _ = score_range(layer)
        layers.append(replace(layer, offset=low, scale=1 / (high - low)))
    return layers


def test_levels_of_57_million_weights(race: Any, device: torch.device, peak_memory: Any) -> None:
    layers = make(device)
    total = sum(layer.weight.numel() for layer in layers)
    counts = [0, *(total - round(total * k) for k in np.geomspace(1, 0.001, LEVELS)[1:])]
    scores = torch.cat([normalised(raw_scores(layer), layer) for layer in layers])
    sizes = torch.cat([layer.weight.abs().flatten() for layer in layers])
    keys = (sizes.cpu().numpy(), scores.cpu().numpy())
    order: list[np.ndarray] = []

    def lexsort() -> None:  # stable, so the index breaks what ties are left
        order[:] = [np.lexsort(keys)]

    ours, sort, lex = "selection (this)", "torch.sort of the scores alone", "numpy.lexsort"
    contenders = {
        ours: lambda: assign_levels(layers, counts),
        sort: lambda: torch.sort(scores),
        lex: lexsort,
    }
    extra = peak_memory(contenders[ours])
    result = race(
        contenders,
        ours=ours,
        rounds=3,
        once=(lex,),
        note={
            "dtype": "float32",
            "shape": f"{total} weights, {LEVELS} levels",
            "weights": total,
            "exactly zero": sum(assign_levels(layers, counts).zero) / total,
            "peak memory above the start": f"{extra / 2**20:.0f} MiB, of which bytes out "
            f"{total / 2**20:.0f} MiB (a float32 score a weight: {total * 4 / 2**20:.0f} MiB)",
            "targets on a CPU": f"10 x over {lex}, 3 x over {sort}",
        },
    )
    assert result.seconds
    expected = np.empty(total, np.uint8)
    expected[order[0]] = np.searchsorted(counts, np.arange(total), side="right")
    got = torch.cat([level.flatten() for level in assign_levels(layers, counts).levels])
    assert np.array_equal(got.cpu().numpy(), expected)
