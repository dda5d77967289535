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
from scipy.special import betaincinv

from circuitcore.extraction.accuracy import Judge, worth
from circuitcore.kernels.best_bias.reference import csa
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
        targets = judge.targets
        hits = round(self.low.hit * targets)
        return judge.record(hits, judge.unpruned_alarms, 0.0).csa, self.high.hit


def bounds(judge: Judge, known: Known, bias: str) -> Bounds:
    """A level's bounds with the bias fitted as ``bias`` says (not ``sgd``).  O(N log P)."""
    error = np.minimum(known.error, FAR)
    if bias == "matched":
        return Bounds(*_matched(judge, known, error), bias)
    sign = np.where(judge.is_target.numpy(), 1.0, -1.0)
    best = known.activation + sign * np.where(known.looked, error, FAR)
    worst = known.activation - sign * error
    rows = torch.from_numpy(np.stack([known.activation, worst, best]))
    expected, low, high = judge.fitted(rows, bias)
    return Bounds(expected, low, high, bias)


def _matched(judge: Judge, known: Known, error: np.ndarray) -> tuple[Accuracy, Accuracy, Accuracy]:
    """Expected, least and most accuracy under a matched bias.

    No other image above the end of what is admissible matters.  That end is at most where enough
    of those run surely are: most images drop out at one comparison.
    """
    most, margins, target = judge.unpruned_alarms, judge.margins, judge.target_at
    early = margins - (known.activation + error)  # the least steps of others
    if not np.isfinite(early.sum()):  # FAR times the images is far from overflowing
        raise ValueError("an activation or a margin is not finite")
    early[target] = np.inf
    run = known.looked.copy()
    run[target] = False
    seen = np.flatnonzero(run)
    late = margins[seen] - (known.activation[seen] - error[seen])
    near = np.arange(len(early))
    if len(seen) > most:
        near = np.flatnonzero(early <= np.partition(late, most)[most])
    else:  # others not run may lie as far as may be
        run = ~known.looked
        run[target] = False
        late = np.append(late, margins[run] - (known.activation[run] - FAR))
    steps = margins[near] - known.activation[near]
    steps[np.isinf(early[near])] = np.inf
    own, off = known.activation[target], error[target]
    run_off = np.where(known.looked[target], off, FAR)
    return (
        judge.matched_at(margins[target] - own, steps),
        judge.matched_at(margins[target] - (own - off), early[near]),
        judge.matched_at(margins[target] - (own + run_off), late),
    )


def next_images(judge: Judge, known: Known, found: Bounds, below: float, batch: int) -> np.ndarray:
    """Images whose run decides most about a level not decided yet, int64; empty if all were run.

    Where the level is expected to hold, all that may be false alarms at its bias (under a matched
    bias: at the least that has hits enough, all that is asked).  Where it is expected to fail, the
    ``batch`` hardest, and at least as many as it takes to reject: a false alarm costs at most
    1 / norm of CSA, and a matched bias allows F0 of them.
    """
    steps = judge.margins - known.activation
    unseen = ~known.looked
    if worth(found.expected, found.bias) >= below:
        bias = found.expected.bias
        if found.bias == "matched":
            enough = math.ceil(below * judge.targets)  # hits
            own = np.sort((steps + known.error)[judge.target_at])
            bias = np.nextafter(own[max(enough, 1) - 1], np.inf)
        may_alarm = unseen & (steps - known.error < bias)
        if may_alarm.any() and np.isfinite(known.error[may_alarm]).all():
            return np.flatnonzero(may_alarm)
    images = np.flatnonzero(unseen)
    targets = judge.targets
    norm = {"target": targets, "other": len(unseen) - targets, "predicted": 0}[judge.norm]
    most = judge.unpruned_alarms if found.bias == "matched" else (found.high.csa - below) * norm
    return images[smallest(steps[images], max(batch, int(most) + 1))]


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the ``count`` smallest values, in order, int64; of equal ones the first."""
    if count >= len(values):
        return np.argsort(values, kind="stable")
    near = np.flatnonzero(values <= np.partition(values, count)[count])
    return near[np.argsort(values[near], kind="stable")[:count]]


def undecided_images(judge: Judge, known: Known, found: Bounds, below: float) -> np.ndarray:
    """Images run in low precision whose error may decide whether a level holds, int64.

    Under a matched bias a level holds iff no more than F0 others lie below the step of the last
    target that it needs: those that may be near that one.  Else one bias that does is enough, where
    one is expected to; and all that may do are open, where none is.
    """
    if found.bias != "matched" and worth(found.expected, found.bias) >= below:
        return images_at(judge, known, found.expected.bias)
    if found.bias != "matched":
        return _open_images(judge, known, found.bias, below)
    steps = judge.margins - known.activation
    needed = max(math.ceil(below * judge.targets), 1) - 1
    if needed >= judge.targets:
        return np.empty(0, np.int64)
    low, high = steps - known.error, steps + known.error
    own = judge.target_at
    first, last = np.sort(low[own])[needed], np.sort(high[own])[needed]
    near = np.flatnonzero((low <= last) & (high >= first))
    return near[known.looked[near] & (known.error[near] > 0)]


def images_at(judge: Judge, known: Known, bias: float) -> np.ndarray:
    """Images run whose prediction at this bias lies within their error, int64."""
    away = np.abs(judge.margins - known.activation - bias)
    near = np.flatnonzero(away <= known.error)
    return near[known.looked[near] & (known.error[near] > 0)]


def unsettled_images(judge: Judge, known: Known, bias: str) -> np.ndarray:
    """Images that the fitted bias, hits or false alarms may still depend on, int64.

    All images were run at the level.  Where none is left, the fit is that of float32: it lies
    where no other bias may do better, and no image's error reaches there.
    """
    return _open_images(judge, known, bias, -math.inf)


def _open_images(judge: Judge, known: Known, bias: str, below: float) -> np.ndarray:
    """Images with an error that meets a bias at which a level may be worth the most there is.

    At least ``below`` is asked; a bias is worth at most what is counted with target images early
    and others late, and at least what is counted the other way round.
    """
    if bias == "none":
        return images_at(judge, known, 0.0)
    steps = judge.margins - known.activation
    low, high = steps - known.error, steps + known.error
    far = np.where(known.looked, high, FAR)  # of others not run none need lie below
    target, inexact = judge.is_target.numpy(), known.looked & (known.error > 0)
    if bias != "matched":
        return np.flatnonzero(_open(judge, target, low, high, far, bias, below) & inexact)
    late = far.copy()
    late[judge.target_at] = np.inf
    most = judge.unpruned_alarms
    end = np.partition(late, most)[most] if len(late) > most else np.inf
    near = np.flatnonzero(low <= end)  # no bias beyond is admissible, whatever the others do
    meets = _open(judge, target[near], low[near], high[near], far[near], bias, below)
    return near[meets & inexact[near]]


def _open(
    judge: Judge,
    target: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    far: np.ndarray,
    bias: str,
    below: float,
) -> np.ndarray:
    """Of `_open_images`: whether each image meets such a bias, bool [n]."""
    ends = np.unique(np.concatenate([low[np.isfinite(low)], far]))
    most = _values(judge, bias, ends, target, np.where(target, low, far))
    least = _values(judge, bias, ends, target, np.where(target, far, low))
    asked = max(below, float(least.max()))
    places = np.flatnonzero((most >= asked) & (most > 0))
    if not len(places):  # no image is said to be the category: where the first would be
        return low <= far.min()
    # the bias just above ends[k] is worth most[k], up to the next end
    begin, end = ends[places], np.append(ends, np.inf)[places + 1]
    after = np.searchsorted(end, low)  # the first place that does not end below an image
    begin = np.append(begin, np.inf)
    return begin[np.minimum(after, len(end))] <= high


def _values(
    judge: Judge, bias: str, at: np.ndarray, target: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """`worth` [B] with a bias just above each of ``at`` [B], sorted; inadmissible is 0.

    ``target`` bool and ``steps`` float64 [n], of images that matter there.
    """
    hits = np.searchsorted(np.sort(steps[target]), at, side="right")
    alarms = np.searchsorted(np.sort(steps[~target]), at, side="right")
    if bias == "matched":
        return np.where(alarms <= judge.unpruned_alarms, hits / judge.targets, 0.0)
    sizes = torch.tensor(judge.targets), torch.tensor(len(judge) - judge.targets)
    return csa(torch.from_numpy(hits), torch.from_numpy(alarms), *sizes, judge.norm).numpy()


def false_alarm_limit(found: int, drawn: int, unseen: int, risk: float) -> int:
    """Most false alarms among ``unseen`` images, ``drawn`` of them taken at random, ``found`` seen.

    Wrong with probability at most ``risk``: the exact binomial upper limit, which is on the safe
    side for draws without replacement.
    """
    if found == drawn:
        return unseen
    rate = float(betaincinv(found + 1, drawn - found, 1 - risk))
    return min(unseen, math.floor(rate * unseen) + 1)
