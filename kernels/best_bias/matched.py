"""The matched bias of one row on the CPU: numpy, because hardly a step of the row matters."""

from __future__ import annotations

import math

import numpy as np


def matched_row(
    own: np.ndarray, others: np.ndarray, most_alarms: int
) -> tuple[float, float, int, int, float]:
    """The interval nearest to 0 with the most hits at no more than ``most_alarms`` false alarms.

    ``own``: steps of the target images, float64 [P]; ``others`` float64 [Q], inf where there is no
    image.  Returns lo, hi, hits, false alarms and the least step.  Hits are those of b = e, e the
    end of what is admissible, so the intervals with as many start at the largest target step below
    e and split at other steps alone: no step above e matters, and what a caller knows to lie there
    may be left out.  O(Q): e by partition, the rest among those up to e.
    """
    end = math.inf
    if len(others) > most_alarms:
        end = float(np.partition(others, most_alarms)[most_alarms])
    others = others[others <= end]
    least = min(float(own.min(initial=math.inf)), float(others.min(initial=math.inf)))
    own = own[own < end]
    if not len(own):
        return -math.inf, least, 0, 0, least
    start = float(own.max())
    if start >= 0:  # the first interval is nearest
        low, high = start, min(float(others[others > start].min(initial=math.inf)), end)
    else:
        steps = np.concatenate([own, others])
        if end < 0:  # the last one is
            low, high = float(steps[steps < end].max()), end
        else:  # the one that holds 0 is
            low = float(steps[steps < 0].max())
            high = min(float(steps[steps >= 0].min(initial=math.inf)), end)
    return low, high, len(own), int(np.count_nonzero(others <= low)), least


def matched_bias(own: np.ndarray, others: np.ndarray, most_alarms: int) -> tuple[float, int, int]:
    """`best_bias` of one row with ``most_alarms``: the bias, its hits and its false alarms.

    ``own``, ``others`` as in `matched_row`.
    """
    low, high, hits, alarms, least = matched_row(own, others, most_alarms)
    if not hits:
        return min(least, 0.0), 0, 0
    if low < 0 <= high:
        return 0.0, hits, alarms
    middle = low + 1 if high == math.inf else 0.5 * low + 0.5 * high
    return max(middle, math.nextafter(low, math.inf)), hits, alarms
