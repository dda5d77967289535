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

from circuitcore.extraction.accuracy import Judge
from circuitcore.extraction.bounds import Known, images_at, smallest
from circuitcore.machine.arrivals import may_wait_once, waiting_once

Look = Callable[[Sequence[int], np.ndarray, bool], Tensor]
"""look(levels, images int64 [n], in float32?) -> target activations float32 [T, n]"""

Away = Callable[[int], np.ndarray]
"""away(level) -> how far each image's step lies from where it may decide, float64 [N]"""

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
    were finite, ``largest`` float64 [count] the largest error of these; ``changes`` int64 [count]:
    how often a level was looked at.
    """

    def __init__(
        self,
        look: Look,
        count: int,
        images: int,
        low: bool,
        away: Away | None = None,
        once: bool = False,
    ) -> None:
        self.look, self.low, self.away, self.once = look, low, away, once
        self.activation = np.zeros((count, images))
        self.looked = np.zeros((count, images), bool)
        self.exact = np.zeros((count, images), bool)
        self.bound = np.zeros(count)
        self.tried = np.zeros(count, np.int64)
        self.largest = np.zeros(count)
        self.repeated = np.zeros(count, np.int64)
        self.changes = np.zeros(count, np.int64)
        self._relying = np.zeros(count, np.int64)  # images not in float32
        self._sizes: dict[int, float] = {}  # of levels not looked at since

    def start(self, activation: np.ndarray, exact: np.ndarray, bound: float) -> None:
        """Level 0, known before."""
        self.activation[0], self.looked[0], self.exact[0] = activation, True, exact
        self.bound[0] = bound
        self._relying[0] = np.count_nonzero(~exact)

    def error(self, t: int) -> np.ndarray:
        """How far off the activations of level ``t`` may be, float64 [N]; 0 in float32."""
        return np.where(self.exact[t], 0.0, self.bound[t])

    def see(self, levels: Sequence[int], images: np.ndarray, precise: bool = False) -> None:
        """Run images at levels, those not yet run there (in float32: those not yet exact)."""
        precise = precise or not self.low
        done = self.exact if precise else self.looked
        new = np.zeros(len(images), bool)
        for t in levels:
            new |= ~done[t][images]
        images = images[new]
        if not len(images):
            return
        if precise:
            self._take(levels, images, self.look(levels, images, True), True)
            return
        found = self._low(levels, images)
        # what overflowed says nothing
        self.see(levels, images[~np.isfinite(found).all(0)], precise=True)
        self._measure(np.asarray(levels, np.int64), images)

    def _low(self, levels: Sequence[int], images: np.ndarray) -> np.ndarray:
        """Run images in low precision, and in the same wait those that tell its error.

        Those closest to where a level is decided would tell as much and be run again anyhow, but
        only the look itself shows them: it costs another wait, which is nothing where none is.
        """
        tried = None
        if self.once and may_wait_once(self.look):
            tried = self._untried(np.asarray(levels, np.int64), images)
        if tried is None:
            return self._take(levels, images, self.look(levels, images, False), False)
        few = tried[0].tolist(), tried[1], True
        with waiting_once():
            found, exact = self.look(levels, images, False), self.look(*few)
        if found.isnan().any():
            found = self.look(levels, images, False)
        if exact.isnan().any():
            exact = self.look(*few)
        low = self._take(levels, images, found, False)
        self._take(few[0], few[1], exact, True)
        return low

    def _take(
        self, levels: Sequence[int], images: np.ndarray, activation: Tensor, precise: bool
    ) -> np.ndarray:
        """Note what was run; as float64 [T, n]."""
        found = activation.double().numpy()
        for t, values in zip(levels, found, strict=True):
            self._note(t, images, values, precise)
        return found

    def _note(self, t: int, images: np.ndarray, values: np.ndarray, precise: bool) -> None:
        """Keep what was found of images at a level; what is exact stays."""
        exact, looked = self.exact[t], self.looked[t]
        if precise:
            if self.low:
                self._tested(t, images, values)
            exact[images] = True
        else:
            if (kept := exact[images]).any():
                values = np.where(kept, self.activation[t][images], values)
            self._relying[t] += len(images) - np.count_nonzero(looked[images])
        self.activation[t][images] = values
        looked[images] = True
        self.changes[t] += 1
        self._sizes.pop(t, None)

    def recheck(self, t: int, unsure: Callable[[], np.ndarray]) -> None:
        """Run in float32 what ``unsure`` names at level ``t``, until it names no image more."""
        while len(images := unsure()):
            self.see([t], images, precise=True)

    def _tested(self, t: int, images: np.ndarray, values: np.ndarray) -> None:
        """Note how far off images were that are run again in float32, and widen what they break."""
        again = images[place := self.looked[t][images] & ~self.exact[t][images]]
        self.repeated[t] += len(again)
        self._relying[t] -= len(again)
        off = np.abs(self.activation[t][again] - values[place])
        off = off[np.isfinite(off)]
        self.tried[t] += len(off)
        self.largest[t] = max(self.largest[t], off.max(initial=0.0))
        if self.bound[t] > 0:
            self.bound[t] = max(self.bound[t], ROUNDING * self.largest[t])

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
        wanted = self._short(rows, images)
        short = rows[wanted > 0]
        left = images[~self.exact[np.ix_(short, images)].any(0)]
        if not len(short) or not len(left):
            return None
        some = np.unique([*short[::NEAR], short[-1]])  # two of them are near any other
        count = -(-int(wanted.max()) // min(len(some), 2))
        tried = left[_spread(len(left), count)]
        if self.away is not None and len(some) == 1 and self.looked[some[0]][left].all():
            # those that would be run again soon
            tried = np.sort(left[smallest(self.away(int(some[0]))[left], count)])
        return some, tried

    def _size(self, t: int) -> float:
        """Root mean square of a level's activations: errors grow with it from level to level."""
        if t not in self._sizes:
            own = self.activation[t][np.flatnonzero(self.looked[t])]
            own = own[np.isfinite(own)]
            size = float(np.sqrt(np.sum(own * own) / max(len(own), 1)))
            self._sizes[t] = max(size, LEAST)
        return self._sizes[t]

    def _short(self, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """How many more images must be tried at or near each of these levels, int64 [T].

        ``images`` are run there in low precision, or about to be.
        """
        found = np.zeros(len(rows), np.int64)
        for k, t in enumerate(rows):
            relying = self._relying[t] + np.count_nonzero(~self.looked[t][images])
            wanted = PROBE if relying <= FEW else PROBE_MANY
            near = np.minimum(self.tried[_near(t)], wanted).sum()
            found[k] = min(max(wanted - near, 0), relying)
        return found


def as_in_float32(
    look: Look, judge: Judge, bias: float, *, low: bool, once: bool = False
) -> np.ndarray:
    """One circuit's activation float64 [N], every prediction at ``bias`` that of float32.

    ``look``: at level 0, the circuit; ``low``: in low precision but for images close to the bias.
    """

    def away(t: int) -> np.ndarray:
        return np.abs(judge.margins - looks.activation[t] - bias)

    def unsure() -> np.ndarray:
        known = Known(looks.activation[0], looks.error(0), looks.looked[0])
        return images_at(judge, known, bias)

    looks = Looks(look, 1, len(judge), low, away, once)
    looks.see([0], np.arange(len(judge)))
    looks.recheck(0, unsure)
    return looks.activation[0]


def _near(t: int) -> slice:
    """The levels whose errors count at level ``t``."""
    return slice(max(t - NEAR, 0), t + NEAR + 1)


def _spread(size: int, count: int) -> np.ndarray:
    """``count`` of ``size`` places, evenly; all where there are fewer."""
    return np.linspace(0, size - 1, min(count, size)).astype(np.int64)
