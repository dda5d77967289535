"""How many false alarms a random sample leaves possible (Clopper and Pearson, 1934)."""

from __future__ import annotations

import math

from scipy.special import betaincinv

SAMPLE = 512  # images of a sample


def false_alarm_limit(found: int, drawn: int, unseen: int, risk: float) -> int:
    """Most false alarms among ``unseen`` images, ``drawn`` of them taken at random, ``found`` seen.

    Wrong with probability at most ``risk``: the exact binomial upper limit, which is on the safe
    side for draws without replacement.
    """
    if found == drawn:
        return unseen
    rate = float(betaincinv(found + 1, drawn - found, 1 - risk))
    return min(unseen, math.floor(rate * unseen) + 1)
