"""Screening: judge the levels of a stage by the stop rule without running every image at each.

A level is rejected on any images exactly: the others could only add false alarms, or lower the
end of what a matched bias may be.  So the target images, the hardest others (by unpruned margin)
and a random control come first.  Scanned from the sparse end (``sparsest-above``) a level is
accepted when nothing is left open, which makes the choice that of running everything.  Scanned from
the dense end (``first-crossing``) an image last run at an earlier level counts as expected, within
what images moved from level to level since (`Neighbours`).  It is run again once that could matter.
The level chosen is always run whole, and stepped back from if it fails.  Looks may be in a lower
precision: an image is run again in float32 where its rounding could decide, or could move the
accuracy recorded of the level chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuitcore.extraction.accuracy import Judge, worth
from circuitcore.extraction.bounds import (
    Bounds,
    Known,
    bounds,
    false_alarm_limit,
    images_at,
    next_images,
    smallest,
    undecided_images,
    unsettled_images,
)
from circuitcore.extraction.looks import Look, Looks
from circuitcore.extraction.neighbours import Neighbours
from circuitcore.records import Accuracy

HARDEST = 0.01  # of the images, at least as many as target images: run at every level
CONTROL = 1 / 128  # of the images, at least 64: run at every level, drawn at random
SAMPLE = 512  # images of a sample


@dataclass(frozen=True)
class Rule:
    """How levels are judged: one `worth` at least ``below`` holds.

    ``stop``, ``bias``: as in the options; ``at_once``: levels run together (the fc stage) or one
    by one; ``low``: looks are in low precision unless in float32 is asked for; ``once``: two looks
    may share one wait for a device (`Looks`); ``risk``:
    probability of a false acceptance that a sample may have, at one level; ``seed`` of random
    choices.
    """

    below: float
    stop: str
    bias: str
    at_once: bool
    low: bool = False
    once: bool = False
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
        start_error: np.ndarray | None = None,
    ) -> None:
        """``start`` float32 [N]: level 0, off by ``start_error`` float64 [N] at most (0 if None).

        ``work``: multiply-adds of ``look`` so far; ``certifying``: those that certified.
        """
        self.judge, self.rule, self.count = judge, rule, count
        self.work, self.certifying = work, 0
        images = len(start)
        self.looks = Looks(look, count, images, rule.low, self._away, rule.once)
        error = np.zeros(images) if start_error is None else start_error
        self.looks.start(start.double().numpy(), error == 0, float(error.max()))
        self.first = self._first_images()
        self._known = Neighbours(self.looks, self.first, rule.stop).known
        level_0 = judge.fitted(start[None], rule.bias)[0]
        self.judged = {0: Judged(Bounds(level_0, level_0, level_0, rule.bias), images, 0)}

    def _first_images(self) -> np.ndarray:
        """Run at every level: the targets, the hardest others, and to see movement a control."""
        target = self.judge.is_target.numpy()
        others = np.flatnonzero(~target)
        steps = self.judge.margins - self.activation[0]
        hardest, control = run_at_every_level(len(target), self.judge.targets, self.rule.stop)
        chosen = target.copy()
        chosen[others[smallest(steps[others], hardest)]] = True
        random = np.random.default_rng([self.rule.seed, 17])
        chosen[random.permutation(others)[:control]] = True
        return np.flatnonzero(chosen)

    def run(self) -> int:
        """Judge levels as far as the stop rule looks; the chosen level, run whole."""
        order = range(1, self.count)
        if self.rule.stop == "sparsest-above":
            return self._sparsest(order[::-1])
        return self._first_crossing(order)

    def judge_all(self, settled: bool = False) -> None:
        """Judge every level on every image (``--screen off``).

        ``settled``: each level's accuracy as in float32, not only whether it holds.
        """
        levels, images = range(1, self.count), np.arange(self.looked.shape[1])
        if not levels:
            return
        self.looks.see(levels, images)
        if self.rule.low:
            for t in levels:
                (self._settle if settled else self._decide)(t)
            return
        rows = torch.from_numpy(self.activation[1:])
        for t, found in zip(levels, self.judge.fitted(rows, self.rule.bias), strict=True):
            self.judged[t] = Judged(Bounds(found, found, found, self.rule.bias), len(images), 0)

    def holds(self, t: int) -> bool:
        """Whether a level is worth the threshold, on as few images as that takes."""
        self.looks.see([t], self.first)
        return self._decide(t)

    def certified(self, t: int, below: float | None = None) -> int:
        """The level run whole, its accuracy as in float32, stepped back while it fails there.

        ``below``: the threshold, where it is known only after the sweep.
        """
        if below is not None:
            self.rule = replace(self.rule, below=below)
        while t and not self._whole(t):
            t -= 1
        return t

    def at(self, t: int) -> Tensor:
        """Activations float32 [N] of a level run whole, off by `error` at most."""
        return torch.from_numpy(self.activation[t]).float()

    def error(self, t: int) -> np.ndarray:
        """How far off the activations of level ``t`` may be, float64 [N]; 0 in float32."""
        return self.looks.error(t)

    @property
    def activation(self) -> np.ndarray:
        """As run, float64 [count, N]."""
        return self.looks.activation

    @property
    def looked(self) -> np.ndarray:
        """Which images were run, bool [count, N]."""
        return self.looks.looked

    def _sparsest(self, order: Sequence[int]) -> int:
        if self.rule.at_once:
            self.looks.see(order, self.first)
        return next((t for t in order if self.holds(t) and self._whole(t)), 0)

    def _first_crossing(self, order: Sequence[int]) -> int:
        if self.rule.at_once:
            self.looks.see(order, self.first)
        last = 0
        for t in order:
            if not self.holds(t):
                break
            last = t
        return self.certified(last)

    def _whole(self, t: int) -> bool:
        """Certify: every image at level ``t``, settled in float32; whether it still holds."""
        before = self.work()
        self.looks.see([t], np.arange(self.looked.shape[1]))
        found = self._settle(t)
        self.certifying += self.work() - before
        return worth(found, self.rule.bias) >= self.rule.below

    def _settle(self, t: int) -> Accuracy:
        """A level run whole: its accuracy and bias as all images in float32 give them."""
        bias = self.rule.bias
        self.looks.recheck(t, lambda: unsettled_images(self.judge, self._known(t), bias))
        found = self.judge.fitted(torch.from_numpy(self.activation[t : t + 1]), bias)[0]
        repeated = int(self.looks.repeated[t])
        self.judged[t] = Judged(Bounds(found, found, found, bias), self.looked.shape[1], repeated)
        return found

    def _decide(self, t: int) -> bool:
        """Run images at ``t`` until it is decided.

        Cost: two bounds a round; each round looks at more images, twice as many as the last
        where the level is expected to fail.  Images that may decide by their error alone are run
        in float32 before any other is looked at.
        """
        rule, batch, may_sample = self.rule, len(self.first), True
        while True:
            known = self._known(t)
            found = bounds(self.judge, known, rule.bias)
            holds = found.decided(rule.below)
            if holds is not None:
                break
            unsure = undecided_images(self.judge, known, found, rule.below)
            if len(unsure):
                self.looks.see([t], unsure, precise=True)
                continue
            if may_sample:
                may_sample = False
                sampled = self._sampled(t, known, found)
                if sampled is not None and worth(sampled, rule.bias) >= rule.below:
                    found = replace(bounds(self.judge, self._known(t), rule.bias), low=sampled)
                    holds = True
                    break
                if sampled is not None:
                    continue
            if known.looked.all():  # nothing but rounding is left: the fit itself is needed
                return worth(self._settle(t), rule.bias) >= rule.below
            more = next_images(self.judge, known, found, rule.below, batch)
            self.looks.see([t], more)
            batch *= 2
        repeated = int(self.looks.repeated[t])
        self.judged[t] = Judged(found, int(self.looked[t].sum()), repeated)
        return holds

    def _sampled(self, t: int, known: Known, found: Bounds) -> Accuracy | None:
        """Under norm ``other``, a lower bound from a fresh sample; None where there is none.

        The bias is fixed before the sample is drawn, so its false alarms are an unbiased count.
        """
        rule, bias = self.rule, found.expected.bias
        usable = self.judge.norm == "other" and rule.stop == "first-crossing"
        fails = worth(found.expected, rule.bias) < rule.below
        if not usable or fails:
            return None
        unseen = np.flatnonzero(~known.looked)
        if len(unseen) < 2 * SAMPLE:
            return None
        least = false_alarm_limit(0, SAMPLE, len(unseen), rule.risk)
        if rule.bias == "matched" and least > self.judge.unpruned_alarms:
            return None  # no sample of this size could show that the bias is admissible
        random = np.random.default_rng([rule.seed, 23, t, len(unseen)])
        sample = random.choice(unseen, SAMPLE, replace=False)
        self.looks.see([t], sample)
        steps = self.judge.margins
        if rule.low:  # what is counted is what float32 would count
            self.looks.recheck(t, lambda: images_at(self.judge, self._known(t), bias))
        said = bias > steps - self.activation[t]
        target = self.judge.is_target.numpy()
        alarms = int((said & ~target & known.looked).sum()) + false_alarm_limit(
            int(said[sample].sum()), SAMPLE, len(unseen), rule.risk
        )
        if rule.bias == "matched" and alarms > self.judge.unpruned_alarms:
            return None
        return self.judge.record(int((said & target).sum()), alarms, bias)

    def _away(self, t: int) -> np.ndarray:
        """How far the steps at level ``t`` are from where one may decide, as far as that is known.

        Whether the level holds is decided near the last target image that it needs, what is
        recorded of it near its bias.
        """
        judge, bias = self.judge, self.rule.bias
        steps = judge.margins - self.activation[t]
        places = [0.0]
        if bias == "matched":
            own = np.sort(steps[judge.target_at])
            needed = max(math.ceil(self.rule.below * judge.targets), 1) - 1
            places = [own[min(needed, len(own) - 1)]]
        if bias != "none" and self.looked[t].all():
            fitted = judge.fitted(torch.from_numpy(self.activation[t : t + 1]), bias)[0]
            places.append(fitted.bias)
        elif bias == "exact":
            near = min(self.judged, key=lambda u: abs(u - t))
            places = [self.judged[near].bounds.expected.bias]
        return np.min([np.abs(steps - place) for place in places], axis=0)
