"""The kernels that find where levels cut, in the interpreter: exactly what plain torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitcore.kernels.levels.gpu_cuts import launch_refine
from circuitcore.kernels.levels.gpu_select import refine_told
from circuitcore.kernels.levels.trie import DIGITS


def problem(nodes: int, levels: int, seed: int) -> list[torch.Tensor]:
    """A depth's histogram, some nodes not there, and counts that cut through one node a level."""
    random = np.random.default_rng(seed)
    histogram = np.zeros((nodes, DIGITS), np.int64)
    for node in range(nodes):
        where = random.choice(DIGITS, 30)
        histogram[node, where] = random.integers(0, 50, 30) * (random.random() < 0.8)
    total = histogram.sum(1)
    through = (np.sort(random.random(levels)) * total.sum()).astype(np.int64)
    through[levels // 2 :] = through[levels // 2]  # levels that cut the same digit
    wanted = (through - (np.cumsum(total) - total)[:, None]).clip(0, total[:, None])
    return [torch.from_numpy(histogram).int(), torch.from_numpy(wanted).int()]


@pytest.mark.parametrize(("nodes", "levels"), [(1, 1), (1, 7), (3, 7), (5, 20)])
@pytest.mark.parametrize(("depth", "snap"), [(0, False), (1, True), (1, False)])
def test_rows_and_nodes_below(nodes: int, levels: int, depth: int, snap: bool) -> None:
    nodes = nodes if depth else 1  # there is one root
    histogram, wanted = problem(nodes, levels, nodes + levels)
    found = []
    for how in (refine_told, launch_refine):
        rows = torch.zeros(nodes, DIGITS, dtype=torch.int16)
        told = torch.arange(levels + 3, dtype=torch.int32)
        first = torch.tensor([40, 50], dtype=torch.int32)
        block = {} if how is refine_told else {"block": 16384}
        below = how(histogram, wanted, rows, told, first, depth, snap, **block)
        found.append((rows[histogram.sum(1) > 0], told, first, below))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
