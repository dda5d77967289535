"""What was run of levels on images, in which precision, and how far off that may be.

A lower precision's error is bounded by `ROUNDING` times the largest difference seen at a level, or
close to it, on images run in both precisions: some of those that are run first, and more where
many images are held to it.  Every image that is run again in float32 later tests the bound and
may widen it; what was decided at the level is decided anew then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from circuitcore.machine.arrivals import may_wait_once, waiting_once

Look = Callable[[Sequence[int], np.ndarray, bool], Tensor]
"""look(levels, images int64 [n], in float32?) -> target activations float32 [T, n]"""

# Of normal errors the largest of 20,000 exceeds the bound in one level of 100,000 with 32 images
# tried, in one of 20 with 8; of 400 in one of 10,000 with 16
PROBE, PROBE_MANY = 16, 32  # images tried at a level and `NEAR` it, where up to `FEW` rely on them
FEW = 2000
ROUNDING = 4.0  # times the largest error seen
NEAR = 4  # levels to either side whose errors count too
LEAST = 1e-9  # a bound is never 0: what was run in low precision is never taken for exact


class Looks:
    """Activations of ``count`` levels on N images as they are run; ``low``: unless asked otherwise.

    ``activation`` float64, ``looked`` (run at all) and ``exact`` (in float32) bool, [count, N];
    ``bound`` float64 [count]: how far off what is not exact may be; ``repeated`` int64 [count]:
    runs in float32 of images that were run in low precision before; ``tried``: those of them that
    were finite, ``largest`` float64 [count] the largest error of these.
    """

    def __init__(self, look: Look, count: int, images: int, low: bool) -> None:
        self.look, self.low = look, low
        self.activation = np.zeros((count, images))
        self.looked = np.zeros((count, images), bool)
        self.exact = np.zeros((count, images), bool)
        self.bound = np.zeros(count)
        self.tried = np.zeros(count, np.int64)
        self.largest = np.zeros(count)
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
        if precise:
            self._take(rows, images, self.look(levels, images, True), True)
            return
        found = self._low(rows, images)
        # what overflowed says nothing
        self.see(levels, images[~np.isfinite(found).all(0)], precise=True)
        self._measure(rows, images)

    def _low(self, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Run images in low precision, and in the same wait those that tell its error."""
        levels, tried = rows.tolist(), None
        if may_wait_once(self.look):
            self.looked[np.ix_(rows, images)] = True
            tried = self._untried(rows, images)
        if tried is None:
            return self._take(rows, images, self.look(levels, images, False), False)
        few = tried[0].tolist(), tried[1], True
        with waiting_once():
            found, exact = self.look(levels, images, False), self.look(*few)
        if found.isnan().any():
            found = self.look(levels, images, False)
        if exact.isnan().any():
            exact = self.look(*few)
        low = self._take(rows, images, found, False)
        self._take(*tried, exact, True)
        return low

    def _take(
        self, rows: np.ndarray, images: np.ndarray, activation: Tensor, precise: bool
    ) -> np.ndarray:
        """Note what was run; as float64 [T, n]."""
        block, found = np.ix_(rows, images), activation.double().numpy()
        exact = self.exact[block]
        if precise:
            self._tested(rows, block, found)
        self.activation[block] = (
            found if precise else np.where(exact, self.activation[block], found)
        )
        self.looked[block] = True
        self.exact[block] = exact | precise
        return found

    def recheck(self, t: int, unsure: Callable[[], np.ndarray]) -> None:
        """Run in float32 what ``unsure`` names at level ``t``, until it names no image more."""
        while len(images := unsure()):
            self.see([t], images, precise=True)

    def _tested(self, rows: np.ndarray, block: tuple[np.ndarray, ...], found: np.ndarray) -> None:
        """Note how far off images were that are run again in float32, and widen what they break."""
        again = self.looked[block] & ~self.exact[block]
        self.repeated[rows] += again.sum(1)
        off = np.abs(self.activation[block] - found)
        tells = again & np.isfinite(off)
        self.tried[rows] += tells.sum(1)
        self.largest[rows] = np.maximum(self.largest[rows], np.where(tells, off, 0.0).max(1))
        known = rows[self.bound[rows] > 0]
        self.bound[known] = np.maximum(self.bound[known], ROUNDING * self.largest[known])

    def _measure(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Bound the error of levels, on as many images tried as those that rely on it ask for."""
        while (tried := self._untried(rows, images)) is not None:
            self.see(tried[0].tolist(), tried[1], precise=True)
        for t in rows:
            near = [u for u in range(len(self.tried))[_near(t)] if self.tried[u]]
            seen = max(
                (self.largest[u] * max(1.0, self._size(t) / self._size(u)) for u in near),
                default=0.0,
            )
            self.bound[t] = max(self.bound[t], ROUNDING * seen, LEAST)

    def _untried(
        self, rows: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Levels and images to try next; None where enough are, or nothing is left."""
        short = rows[self._short(rows) > 0]
        left = images[~self.exact[np.ix_(short, images)].any(0)]
        if not len(short) or not len(left):
            return None
        some = np.unique([*short[::NEAR], short[-1]])  # two of them are near any other
        count = -(-int(self._short(short).max()) // min(len(some), 2))
        return some, left[_spread(len(left), count)]

    def _size(self, t: int) -> float:
        """Root mean square of a level's activations: errors grow with it from level to level."""
        own = self.activation[t, self.looked[t]]
        own = own[np.isfinite(own)]
        return max(float(np.sqrt(np.sum(own * own) / max(len(own), 1))), LEAST)

    def _short(self, rows: np.ndarray) -> np.ndarray:
        """How many more images must be tried at or near each of these levels, int64 [T]."""
        found = np.zeros(len(rows), np.int64)
        for k, t in enumerate(rows):
            relying = np.count_nonzero(self.looked[t] & ~self.exact[t])
            wanted = PROBE if relying <= FEW else PROBE_MANY
            near = np.minimum(self.tried[_near(t)], wanted).sum()
            found[k] = min(max(wanted - near, 0), relying)
        return found


def _near(t: int) -> slice:
    """The levels whose errors count at level ``t``."""
    return slice(max(t - NEAR, 0), t + NEAR + 1)


def _spread(size: int, count: int) -> np.ndarray:
    """``count`` of ``size`` places, evenly; all where there are fewer."""
    return np.linspace(0, size - 1, min(count, size)).astype(np.int64)
