"""What a level is expected to be where images were not run: from the levels judged before it."""

from __future__ import annotations

import numpy as np

from circuitcore.extraction.bounds import Known
from circuitcore.extraction.looks import Looks

REACH = 2.0  # times the largest movement seen between neighbouring levels


class Neighbours:
    """What is known of each level, of its images and from ``looks`` at others.

    ``first``: images run at every level, int64; ``stop``: the stop rule, which says in which order
    levels are judged.  What follows from a level is kept until it is looked at again.
    """

    def __init__(self, looks: Looks, first: np.ndarray, stop: str) -> None:
        self.looks, self.first, self.sparse = looks, first, stop == "sparsest-above"
        self._levels: list[tuple[int, int]] = []  # those in `_found`, and how often looked at
        self._found: tuple[np.ndarray, np.ndarray, np.ndarray]
        self._movements: dict[int, tuple[tuple[int, int], tuple[float, float]]] = {}

    def known(self, t: int) -> Known:
        """Level ``t`` as run, and otherwise as expected from the nearest level judged before."""
        looks, looked = self.looks, self.looks.looked[t].copy()
        if looked.all():
            return Known(looks.activation[t].copy(), looks.error(t), looked)
        near, activation, rounding = self._nearest(t)
        if self.sparse:  # only an order to look in
            activation, error = activation.copy(), np.full(len(looked), np.inf)
        else:
            shifts, reaches = self._movement(t)
            activation = activation + (shifts[t] - shifts)[near]
            error = (reaches[t] - reaches)[near] + rounding
        run = np.flatnonzero(looked)
        activation[run] = looks.activation[t][run]
        error[run] = np.where(looks.exact[t][run], 0.0, looks.bound[t])
        return Known(activation, error, looked)

    def _nearest(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each image the level before ``t`` that it was last run at, as the stop rule goes.

        Level 0 where none.  int64 [N]; beside it the activation there, and how far off that is.
        """
        looks, count = self.looks, len(self.looks.changes)
        before = range(count - 1, t, -1) if self.sparse else range(1, t)
        levels = [(u, int(looks.changes[u])) for u in (0, *before)]
        done = len(self._levels)
        if not done or levels[:done] != self._levels:
            done = 1
            zero = np.zeros(len(looks.looked[0]), np.int64)
            self._found = zero, looks.activation[0].copy(), looks.error(0)
        near, activation, rounding = self._found
        for u, _ in levels[done:]:
            run = np.flatnonzero(looks.looked[u])
            near[run], activation[run] = u, looks.activation[u][run]
            rounding[run] = np.where(looks.exact[u][run], 0.0, looks.bound[u])
        self._levels = levels
        return self._found

    def _movement(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Summed over the levels up to ``t``: the common shift, and the reach beside it."""
        moved = [(0.0, 0.0), *(self._moved(u) for u in range(1, t + 1))]
        shift, reach = np.array(moved).T
        return shift.cumsum(), reach.cumsum()

    def _moved(self, t: int) -> tuple[float, float]:
        """From the level before to ``t``: the shift of the first images, the reach beside it."""
        looks = self.looks
        key = int(looks.changes[t - 1]), int(looks.changes[t])
        if self._movements.get(t, (None, None))[0] != key:
            moved = looks.activation[t][self.first] - looks.activation[t - 1][self.first]
            middle = (len(moved) - 1) // 2, len(moved) // 2
            shift = np.partition(moved, middle)[list(middle)].sum() / 2  # the median
            reach = REACH * np.abs(moved - shift).max()
            self._movements[t] = key, (float(shift), float(reach))
        return self._movements[t][1]
