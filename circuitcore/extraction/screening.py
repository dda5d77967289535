"""Screening: judge the levels of a stage by the stop rule without running every image at each.

A level is rejected on any images exactly: the others could only add false alarms, or lower the
end of what a matched bias may be.  So the target images, the hardest others (by unpruned margin)
and a random control come first.  Scanned from the sparse end (``sparsest-above``) a level is
accepted when nothing is left open, which makes the choice that of running everything.  Scanned from
the dense end (``first-crossing``) an image last run at an earlier level counts as expected, within
what images moved from level to level since: ``REACH`` times the largest movement seen, beside the
one all have in common.  It is run again once that could matter.  The level chosen is always run
whole, and stepped back from if it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from circuitcore.extraction.accuracy import Judge, worth
from circuitcore.extraction.bounds import Bounds, Known, bounds, inexact_images, next_images
from circuitcore.records import Accuracy

Look = Callable[[Sequence[int], np.ndarray, bool], Tensor]
"""look(levels, images int64 [n], in float32?) -> target activations float32 [T, n]"""

REACH = 2.0  # times the largest movement seen between neighbouring levels
HARDEST = 0.01  # of the images, at least as many as target images: run at every level
CONTROL = 1 / 128  # of the images, at least 64: run at every level, drawn at random
PROBE = 32  # images run in both precisions at a level, to measure the lower one's error
ROUNDING = 4.0  # times the largest error of the probe


@dataclass(frozen=True)
class Rule:
    """How levels are judged: one `worth` at least ``below`` holds.

    ``stop``, ``bias``: as in the options; ``at_once``: levels run together (the fc stage) or one
    by one; ``low``: looks are in low precision unless in float32 is asked for; ``risk``:
    probability of a false acceptance that a sample may have, at one level; ``seed`` of random
    choices.
    """

    below: float
    stop: str
    bias: str
    at_once: bool
    low: bool = False
    risk: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """One level: its bounds, how many images were run, how many of those again in float32."""

    bounds: Bounds
    images: int
    recomputed: int


def run_at_every_level(images: int, targets: int, stop: str) -> tuple[int, int]:
    """How many of the hardest others, and how many drawn at random, beside the target images."""
    control = max(64, round(CONTROL * images)) if stop == "first-crossing" else 0
    return max(targets, round(HARDEST * images)), control


class Screening:
    """Levels 0 .. ``count`` - 1 of one stage, level 0 known: what was run, and what follows."""

    def __init__(
        self,
        judge: Judge,
        start: Tensor,
        count: int,
        look: Look,
        rule: Rule,
        work: Callable[[], int] = lambda: 0,
    ) -> None:
        """``work``: multiply-adds of ``look`` so far; ``certifying``: those that certified."""
        self.judge, self.look, self.rule, self.count = judge, look, rule, count
        self.work, self.certifying = work, 0
        images = len(start)
        self.activation = np.zeros((count, images))
        self.error = np.zeros((count, images))
        self.looked = np.zeros((count, images), bool)
        self.activation[0], self.looked[0] = start.double().numpy(), True
        self.first = self._first_images()
        level_0 = judge.fitted(start[None], rule.bias)[0]
        self.judged = {0: Judged(Bounds(level_0, level_0, level_0, rule.bias), images, 0)}

    def _first_images(self) -> np.ndarray:
        """Run at every level: the targets, the hardest others, and to see movement a control."""
        target = self.judge.is_target.numpy()
        others = np.flatnonzero(~target)
        steps = self.judge.margin_max.numpy() - self.activation[0]
        hardest, control = run_at_every_level(len(target), int(target.sum()), self.rule.stop)
        chosen = target.copy()
        chosen[others[np.argsort(steps[others], kind="stable")[:hardest]]] = True
        random = np.random.default_rng([self.rule.seed, 17])
        chosen[random.permutation(others)[:control]] = True
        return np.flatnonzero(chosen)

    def run(self) -> int:
        """Judge levels as far as the stop rule looks; the chosen level, run whole."""
        order = range(1, self.count)
        if self.rule.stop == "sparsest-above":
            return self._sparsest(order[::-1])
        return self._first_crossing(order)

    def judge_all(self) -> None:
        """Judge every level on every image (``--screen off``)."""
        levels, images = range(1, self.count), np.arange(self.looked.shape[1])
        if not levels:
            return
        self._see(levels, images)
        if self.rule.low:
            for t in levels:
                self._decide(t)
            return
        rows = torch.from_numpy(self.activation[1:])
        for t, found in zip(levels, self.judge.fitted(rows, self.rule.bias), strict=True):
            self.judged[t] = Judged(Bounds(found, found, found, self.rule.bias), len(images), 0)

    def holds(self, t: int) -> bool:
        """Whether a level is worth the threshold, on as few images as that takes."""
        self._see([t], self.first)
        return self._decide(t)

    def certified(self, t: int, below: float | None = None) -> int:
        """The level run whole in float32, stepped back while it fails there.

        ``below``: the threshold, where it is known only after the sweep.
        """
        if below is not None:
            self.rule = replace(self.rule, below=below)
        while t and not self._whole(t):
            t -= 1
        return t

    def at(self, t: int) -> Tensor:
        """Activations float32 [N] of a level run whole."""
        return torch.from_numpy(self.activation[t]).float()

    def _sparsest(self, order: Sequence[int]) -> int:
        if self.rule.at_once:
            self._see(order, self.first)
        return next((t for t in order if self.holds(t) and self._whole(t)), 0)

    def _first_crossing(self, order: Sequence[int]) -> int:
        if self.rule.at_once:
            self._see(order, self.first)
        last = 0
        for t in order:
            if not self.holds(t):
                break
            last = t
        return self.certified(last)

    def _whole(self, t: int) -> bool:
        """Certify: every image at level ``t`` in float32; whether the level still holds."""
        before = self.work()
        self._see([t], np.arange(self.looked.shape[1]), precise=True)
        self.certifying += self.work() - before
        return self._decide(t)

    def _decide(self, t: int) -> bool:
        """Run images at ``t`` until it is decided.

        Cost: two bounds a round; each round looks at more images, twice as many as the last
        where the level is expected to fail.
        """
        rule, batch, recomputed, may_sample = self.rule, len(self.first), 0, True
        while True:
            known = self._known(t)
            found = bounds(self.judge, known, rule.bias)
            holds = found.decided(rule.below)
            if holds is not None:
                break
            if may_sample:
                may_sample = False
                sampled = self._sampled(t, known, found)
                if sampled is not None and worth(sampled, rule.bias) >= rule.below:
                    found = replace(bounds(self.judge, self._known(t), rule.bias), low=sampled)
                    holds = True
                    break
                if sampled is not None:
                    continue
            if known.looked.all():
                images = inexact_images(self.judge, known, found)
                recomputed += len(images)
                self._see([t], images, precise=True)
                continue
            self._see([t], next_images(self.judge, known, found, rule.below, batch))
            batch *= 2
        recomputed += self.judged[t].recomputed if t in self.judged else 0
        self.judged[t] = Judged(found, int(self.looked[t].sum()), recomputed)
        return holds

    def _sampled(self, t: int, known: Known, found: Bounds) -> Accuracy | None:
        """Under norm ``other``, a lower bound from a fresh sample; None where there is none.

        The bias is fixed before the sample is drawn, so its false alarms are an unbiased count.
        """
        rule, bias = self.rule, found.expected.bias
        unseen = np.flatnonzero(~known.looked)
        usable = self.judge.norm == "other" and rule.stop == "first-crossing" and not rule.low
        fails = worth(found.expected, rule.bias) < rule.below
        if not usable or fails or len(unseen) < 2 * SAMPLE:
            return None
        least = false_alarm_limit(0, SAMPLE, len(unseen), rule.risk)
        if rule.bias == "matched" and least > self.judge.unpruned_alarms:
            return None  # no sample of this size could show that the bias is admissible
        random = np.random.default_rng([rule.seed, 23, t, len(unseen)])
        sample = random.choice(unseen, SAMPLE, replace=False)
        self._see([t], sample)
        said = bias > self.judge.margin_max.numpy() - self.activation[t]
        target = self.judge.is_target.numpy()
        alarms = int((said & ~target & known.looked).sum()) + false_alarm_limit(
            int(said[sample].sum()), SAMPLE, len(unseen), rule.risk
        )
        if rule.bias == "matched" and alarms > self.judge.unpruned_alarms:
            return None
        return self.judge.record(int((said & target).sum()), alarms, bias)

    def _see(self, levels: Sequence[int], images: np.ndarray, precise: bool = False) -> None:
        """Run images at levels, those not yet run there (in float32: those not yet exact)."""
        rows = np.asarray(levels, np.int64)
        done = self.looked[rows] & (self.error[rows] == 0) if precise else self.looked[rows]
        images = images[~done[:, images].all(0)]
        if not len(images) or not len(rows):
            return
        block = np.ix_(rows, images)
        found = self.look(levels, images, precise or not self.rule.low).double().numpy()
        exact = self.looked[block] & (self.error[block] == 0) & (not precise)
        self.activation[block] = np.where(exact, self.activation[block], found)
        error = np.zeros((len(levels), 1))
        if self.rule.low and not precise:
            error = self._rounding(levels, images, found)
        self.error[block] = np.where(exact, 0.0, error)
        self.looked[block] = True

    def _rounding(self, levels: Sequence[int], images: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Error bound [T, 1] of low precision at levels: measured on images run in both."""
        known = self.error[np.asarray(levels, np.int64)].max(1, keepdims=True)
        if (known > 0).all():
            return known
        probe = np.linspace(0, len(images) - 1, min(PROBE, len(images))).astype(np.int64)
        exact = self.look(levels, images[probe], True).double().numpy()
        off = np.abs(exact - found[:, probe]).max(1, keepdims=True)
        return np.maximum(np.maximum(ROUNDING * off, 1e-9), known)

    def _known(self, t: int) -> Known:
        """Level ``t`` as run, and otherwise as expected from the nearest level judged before."""
        looked = self.looked[t]
        if self.rule.stop == "sparsest-above":  # only an order to look in
            near = t + np.argmax(self.looked[t:], axis=0)
            near[~self.looked[t:].any(0)] = 0
            reach = np.full(len(looked), np.inf)
            shift = np.zeros(len(looked))
        else:
            near = t - np.argmax(self.looked[t::-1], axis=0)
            shifts, reaches = self._movement(t)
            shift, reach = shifts[t] - shifts[near], reaches[t] - reaches[near]
        images = np.arange(len(looked))
        rounding = self.error[near, images]
        error = np.where(looked, rounding, reach + rounding)
        return Known(self.activation[near, images] + shift, error, looked.copy())

    def _movement(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Summed over the levels up to ``t``: the common shift, and the reach beside it."""
        moved = np.diff(self.activation[: t + 1][:, self.first], axis=0)
        shift = np.median(moved, axis=1, keepdims=True)
        reach = REACH * np.abs(moved - shift).max(axis=1)
        zero = np.zeros(1)
        return (
            np.concatenate([zero, shift[:, 0].cumsum()]),
            np.concatenate([zero, reach.cumsum()]),
        )


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
