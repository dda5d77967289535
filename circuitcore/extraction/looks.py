"""What was run of levels on images, in which precision, and how far off that may be.

A lower precision's error is measured on a few images run in both: `ROUNDING` times the largest
difference bounds it at a level.  Every image that is run again in float32 later tests that bound;
one that breaks it widens the bound of its level, and what was decided there is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

Look = Callable[[Sequence[int], np.ndarray, bool], Tensor]
"""look(levels, images int64 [n], in float32?) -> target activations float32 [T, n]"""

PROBE = 8  # images run in both precisions where a level is first run, to measure the lower's error
ROUNDING = 4.0  # times the largest error seen
NEAR = 4  # where levels run together, each so-manieth is measured, and counts that far either way
LEAST = 1e-9  # a bound is never 0: what was run in low precision is never taken for exact


class Looks:
    """Activations of ``count`` levels on N images as they are run; ``low``: unless asked otherwise.

    ``activation`` float64, ``looked`` (run at all) and ``exact`` (in float32) bool, [count, N];
    ``bound`` float64 [count]: how far off what is not exact may be; ``repeated`` int64 [count]:
    runs in float32 of images that were run in low precision before.
    """

    def __init__(self, look: Look, count: int, images: int, low: bool) -> None:
        self.look, self.low = look, low
        self.activation = np.zeros((count, images))
        self.looked = np.zeros((count, images), bool)
        self.exact = np.zeros((count, images), bool)
        self.bound = np.zeros(count)
        self.repeated = np.zeros(count, np.int64)

    def start(self, activation: np.ndarray, exact: np.ndarray, bound: float) -> None:
        """Level 0, known before."""
        self.activation[0], self.looked[0], self.exact[0] = activation, True, exact
        self.bound[0] = bound

    def error(self, t: int) -> np.ndarray:
        """How far off the activations of level ``t`` may be, float64 [N]; 0 in float32."""
        return np.where(self.exact[t], 0.0, self.bound[t])

    def see(self, levels: Sequence[int], images: np.ndarray, precise: bool = False) -> None:
        """Run images at levels, those not yet run there (in float32: those not yet exact)."""
        precise = precise or not self.low
        rows = np.asarray(levels, np.int64)
        done = self.exact[rows] if precise else self.looked[rows]
        images = images[~done[:, images].all(0)]
        if not len(images) or not len(rows):
            return
        block = np.ix_(rows, images)
        found = self.look(levels, images, precise).double().numpy()
        exact = self.exact[block]
        if precise:
            self._checked(rows, block, found)
        self.activation[block] = (
            found if precise else np.where(exact, self.activation[block], found)
        )
        self.looked[block] = True
        self.exact[block] = exact | precise
        if not precise:
            # what overflowed says nothing
            self.see(levels, images[~np.isfinite(found).all(0)], precise=True)
            self._measure(rows, images)

    def recheck(self, t: int, unsure: Callable[[], np.ndarray]) -> None:
        """Run in float32 what ``unsure`` names at level ``t``, until it names no image more."""
        while len(images := unsure()):
            self.see([t], images, precise=True)

    def _checked(self, rows: np.ndarray, block: tuple[np.ndarray, ...], found: np.ndarray) -> None:
        """Hold images run again in float32 against the bound; widen it where one breaks it."""
        again = self.looked[block] & ~self.exact[block]
        self.repeated[rows] += again.sum(1)
        off = np.abs(self.activation[block] - found)
        largest = np.where(again & np.isfinite(off), off, 0.0).max(1)
        broken = (largest > self.bound[rows]) & (self.bound[rows] > 0)
        self.bound[rows[broken]] = ROUNDING * largest[broken]

    def _measure(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Bound the error of levels first run now, on images run in both precisions."""
        new = rows[self.bound[rows] == 0]
        if not len(new):
            return
        known = np.flatnonzero(self.bound > 0)
        known = known[(known > 0) & (known <= new[0]) & (known >= new[0] - NEAR)]
        if len(new) == 1 and len(known):
            self.bound[new] = self.bound[known].max()
            return
        tried = np.unique([*new[::NEAR], new[-1]])  # of levels run together every other few
        probe = images[np.linspace(0, len(images) - 1, min(PROBE, len(images))).astype(np.int64)]
        before = self.activation[np.ix_(tried, probe)]
        self.see(tried.tolist(), probe, precise=True)
        off = np.abs(before - self.activation[np.ix_(tried, probe)])
        largest = np.where(np.isfinite(off), off, 0.0).max(1)
        for t in new:
            near = np.abs(tried - t) <= NEAR
            self.bound[t] = max(ROUNDING * largest[near].max(), LEAST)
