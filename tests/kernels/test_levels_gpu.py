"""Level selection without the host's decisions: against the host's, and how often it is waited."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.levels import gpu_select, trie
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels


@settings(deadline=None, max_examples=25)
@given(
    nodes=st.integers(1, 4),
    levels=st.integers(0, 9),
    digits=st.integers(1, 40),
    snap=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_depth_is_refined_as_on_the_host(nodes, levels, digits, snap, seed):
    """Some nodes are not there; a level cuts through one node at most, as in a selection."""
    random = np.random.default_rng(seed)
    histogram = np.zeros((nodes, trie.DIGITS), np.int64)
    for node in range(nodes):
        where = random.choice(trie.DIGITS, digits)
        histogram[node, where] = random.integers(0, 50, digits) * (random.random() < 0.8)
    total = histogram.sum(1)
    through = (np.sort(random.random(levels)) * total.sum()).astype(np.int64)
    wanted = (through - (np.cumsum(total) - total)[:, None]).clip(0, total[:, None])
    most = max(1, levels)
    rows, below, sizes, reached = [], [], [], np.zeros(levels, np.int64)
    for node in range(nodes):
        row, found, children, moved = trie._refine(
            histogram[node], wanted[node], levels, len(below), snap
        )
        rows.append(row)
        below.extend(children)
        sizes.extend(histogram[node][found])
        reached += moved
    got = gpu_select.refine(
        torch.from_numpy(histogram).int(), torch.from_numpy(wanted).int(), most, snap
    )
    there = torch.from_numpy(total > 0)  # the table's row of a node that is not there is not read
    assert torch.equal(got[0][there], torch.from_numpy(np.stack(rows))[there])
    assert got[1][: len(below)].tolist() == [list(map(int, child)) for child in below]
    assert got[2].tolist() == [int(size) for size in sizes] + [0] * (most - len(below))
    assert not got[1][len(below) :].any()
    assert got[3].tolist() == reached.tolist()


def layers(device, tied):
    random = torch.Generator().manual_seed(0)
    for rows, columns in ((12, 40), (1, 30)):
        weight = torch.randn(rows, columns, generator=random)
        left = torch.randn(3, rows, generator=random).relu()
        if tied == "scores":
            left[:] = 0
        if tied == "all":
            left[:], weight[:] = 0, 1
        right = torch.randn(3, columns, generator=random).relu()
        yield LayerScores(weight.to(device), left=left.to(device), right=right.to(device))


@pytest.mark.parametrize("tied", ["", "scores", "all"])
@pytest.mark.parametrize("ties", ["weight", "snap"])
@pytest.mark.parametrize("levels", [0, 1, 255])
def test_the_host_waits_once(tied, ties, levels):
    pytest.importorskip("triton", reason="Triton exists on Linux only")
    from pretend.device import pretended

    total = 12 * 40 + 30
    counts = sorted({0, total} | set(range(0, total, 2)))[:levels]
    with pretended() as cuda:
        scores = list(layers("cuda:0", tied))
        cuda.counts.clear()
        got = assign_levels(scores, counts, ties=ties)
        waits = dict(cuda.counts.syncs)
        found = [level.cpu() for level in got.levels]
    assert sum(waits.values()) == 1, waits
    want = assign_levels(list(layers("cpu", tied)), counts, ties=ties, impl="torch")
    assert (got.counts, got.zero) == (want.counts, want.zero)
    assert all(torch.equal(a, b) for a, b in zip(found, want.levels, strict=True))
