"""What is certain about a level's CSA while only some images were looked at.

Every image has a step d_n = m_n - a_n with an error: 0 where the image was run in float32, the
measured rounding where it was run in a lower precision, what neighbouring levels moved where it was
last run at another level, and no bound at all otherwise.  CSA at a bias falls with every other
image below it, so putting every step at its most favourable end bounds the best CSA from above, and
at its least favourable end from below.  So it is with the hits of a matched bias: others with
smaller steps lower the end of what is admissible, target images with larger ones are not hit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from circuitcore.extraction.accuracy import Judge, worth
from circuitcore.records import Accuracy

FAR = 1e30  # stands for an unbounded step: finite, so that midpoints of intervals are too


@dataclass
class Known:
    """What is known of N images at one level.

    ``activation`` float64 [N]: as run, or as expected; ``error`` float64 [N]: how far off it may
    be (inf: unbounded); ``looked`` bool [N]: run at this level.  Target images are always run.
    """

    activation: np.ndarray
    error: np.ndarray
    looked: np.ndarray


@dataclass(frozen=True)
class Bounds:
    """Accuracy expected, and its bounds; each at a bias of its own, fitted as ``bias`` says.

    ``high`` holds whatever the images not looked at would do.  ``low`` holds if no activation is
    further off than its error.
    """

    expected: Accuracy
    low: Accuracy
    high: Accuracy
    bias: str

    def decided(self, below: float) -> bool | None:
        """Whether the level is `worth` at least ``below``; None while it may be either."""
        if worth(self.high, self.bias) < below:
            return False
        return True if worth(self.low, self.bias) >= below else None

    def csa_interval(self, judge: Judge) -> tuple[float, float]:
        """CSA at the least and at the most; under a matched bias from hits, F from 0 to F0."""
        if self.bias != "matched" or self.low == self.high:
            return self.low.csa, self.high.csa
        targets = int(judge.is_target.sum())
        hits = round(self.low.hit * targets)
        return judge.record(hits, judge.unpruned_alarms, 0.0).csa, self.high.hit


def bounds(judge: Judge, known: Known, bias: str) -> Bounds:
    """A level's bounds with the bias fitted as ``bias`` says (not ``sgd``).  O(N log P)."""
    sign = np.where(judge.is_target.numpy(), 1.0, -1.0)
    error = np.minimum(known.error, FAR)
    best = known.activation + sign * np.where(known.looked, error, FAR)
    worst = known.activation - sign * error
    rows = torch.from_numpy(np.stack([known.activation, worst, best]))
    expected, low, high = judge.fitted(rows, bias)
    return Bounds(expected, low, high, bias)


def next_images(judge: Judge, known: Known, found: Bounds, below: float, batch: int) -> np.ndarray:
    """Images whose run decides most about a level not decided yet, int64; empty if all were run.

    Where the level is expected to hold, all that may be false alarms at its bias (under a matched
    bias: at the least that has hits enough, all that is asked).  Where it is expected to fail, the
    ``batch`` hardest, and at least as many as it takes to reject: a false alarm costs at most
    1 / norm of CSA, and a matched bias allows F0 of them.
    """
    steps = judge.margin_max.numpy() - known.activation
    unseen = ~known.looked
    if worth(found.expected, found.bias) >= below:
        bias = found.expected.bias
        if found.bias == "matched":
            enough = math.ceil(below * int(judge.is_target.sum()))  # hits
            own = np.sort((steps + known.error)[judge.is_target.numpy()])
            bias = np.nextafter(own[max(enough, 1) - 1], np.inf)
        may_alarm = unseen & (steps - known.error < bias)
        if may_alarm.any() and np.isfinite(known.error[may_alarm]).all():
            return np.flatnonzero(may_alarm)
    images = np.flatnonzero(unseen)
    targets = int(judge.is_target.sum())
    norm = {"target": targets, "other": len(unseen) - targets, "predicted": 0}[judge.norm]
    most = judge.unpruned_alarms if found.bias == "matched" else (found.high.csa - below) * norm
    batch = max(batch, int(most) + 1)
    return images[np.argsort(steps[images], kind="stable")[:batch]]


def inexact_images(judge: Judge, known: Known, found: Bounds) -> np.ndarray:
    """Images run in low precision whose decision lies within their error, int64.

    At the bias of any bound, and where a matched bias must end; where none lies there, all images
    that have an error.
    """
    steps = judge.margin_max.numpy() - known.activation
    inexact = known.looked & (known.error > 0)
    close = np.zeros_like(inexact)
    edges = [record.bias for record in (found.expected, found.low, found.high)]
    others = np.sort(steps[~judge.is_target.numpy()])
    if found.bias == "matched" and len(others) > judge.unpruned_alarms:
        edges.append(others[judge.unpruned_alarms])
    for edge in edges:
        close |= inexact & (np.abs(steps - edge) <= known.error)
    return np.flatnonzero(close if close.any() else inexact)
