"""The selection behind `levels`, on the host: a trie of 16-bit digits, refined where levels cut.

The key of a weight is 64 bits: its normalised score as an order-preserving integer, then the bits
of |weight|.  A node of the trie is one prefix of the key; `select` asks the device for a histogram
of the next digit among the weights of every undecided node, and finds with it, for each level,
which digits are pruned entirely and which single digit the level cuts through.  After four digits
only weights equal in score and |weight| are undecided, and their order is that of their index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

DIGITS = 1 << 16
KEY_DIGITS = 4  # 16-bit digits of (score, |weight|)
SCORE_DIGITS = 2
FINITE = 0x80, 0xFF80  # between these lies the first digit of a finite float32


class Trie:
    """table()[node, digit] >= 0: the level byte; < 0: undecided, ~entry the node below.

    Nodes of one depth are numbered from 0; first[depth] is where they start in the table.
    """

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []

    @property
    def depth(self) -> int:
        return len(self.rows)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.rows:
            return np.zeros((1, 1), np.int16), np.zeros(1, np.int64)
        first = np.cumsum([0] + [len(row) for row in self.rows[:-1]]).astype(np.int64)
        return np.concatenate(self.rows), first


class Passes(Protocol):
    """What a device does: read all weights and scores once, per call."""

    zero: tuple[int, ...]

    def histogram(self, trie: Trie, slots: int) -> np.ndarray: ...

    def levels(self, trie: Trie, cuts: np.ndarray, tied: int) -> list[torch.Tensor]: ...


def select(
    passes: Passes, counts: Sequence[int], ties: str
) -> tuple[list[torch.Tensor], tuple[int, ...]]:
    """Level bytes of every layer and the counts reached.  Raises ValueError for NaN or infinity."""
    trie = Trie()
    levels = len(counts)
    tied = 0
    cuts = np.asarray([int(count) for count in counts], np.int64)[None]  # [nodes, levels]
    reached = cuts[0].copy()
    while len(cuts) and trie.depth < KEY_DIGITS:
        histogram = passes.histogram(trie, len(cuts))
        if trie.depth == 0:
            _refuse_nonfinite(histogram[0])
        snap = ties == "snap" and trie.depth == SCORE_DIGITS - 1
        rows: list[np.ndarray] = []
        below: list[np.ndarray] = []
        sizes: list[int] = []
        for node, wanted in enumerate(cuts):
            row, digits, children, moved = _refine(
                histogram[node], wanted, levels, len(below), snap
            )
            reached += moved
            rows.append(row)
            below.extend(children)
            sizes.extend(int(histogram[node][digit]) for digit in digits)
        trie.rows.append(np.stack(rows))
        cuts = np.stack(below) if below else np.empty((0, levels), np.int64)
        tied = sum(sizes)
    # what is left is equal in score and |weight|: of node s, level t prunes the first cuts[s, t]
    return passes.levels(trie, cuts, tied), tuple(int(count) for count in reached)


def _refine(
    histogram: np.ndarray, wanted: np.ndarray, levels: int, nodes: int, snap: bool
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """One node's row of the trie.

    wanted[t] weights of the node are pruned at level t (0 to all of them).  Returns the row int16
    [65536], the digits that some level cuts through with the cuts inside each, and, where ``snap``
    prunes such digits whole instead, how many weights that adds to each level.
    """
    through = np.cumsum(histogram)
    whole = np.searchsorted(through, wanted, side="right")  # digits below are pruned whole
    before = np.where(whole > 0, through[(whole - 1).clip(min=0)], 0)
    cut = (wanted > before) & (whole < DIGITS)
    moved = np.zeros(levels, np.int64)
    if snap:
        moved[cut] = through[whole[cut]] - wanted[cut]
        whole = whole + cut
        cut = np.zeros(levels, bool)
    pruned_at = np.zeros(DIGITS + 1, np.int64)
    np.add.at(pruned_at, whole, 1)  # a level that prunes digits < whole keeps the rest
    row = np.cumsum(pruned_at)[:DIGITS].astype(np.int16)
    children: list[np.ndarray] = []
    digits = np.unique(whole[cut])
    for digit in digits:
        start = through[digit] - histogram[digit]
        row[digit] = -(nodes + len(children)) - 1
        children.append((wanted - start).clip(0, histogram[digit]))
    return row, digits, children, moved


def _refuse_nonfinite(histogram: np.ndarray) -> None:
    """The first digit of a finite float32 lies in 0x0080 to 0xFF7F."""
    if histogram[: FINITE[0]].any() or histogram[FINITE[1] :].any():
        raise ValueError("scores are not finite")
