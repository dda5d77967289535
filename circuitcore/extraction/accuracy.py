"""Circuit substitution accuracy (CSA) and the bias, level and interval that follow from it.

The circuit's activation a_n stands in for the target unit's: image n is predicted as the category
iff a_n + b > m_n, m_n the largest other logit of the unpruned network.  CSA = hit rate minus false
alarms over ``norm`` (Andrade & Konkle 2025, Circuit extraction); all arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitcore.kernels.best_bias.matched import matched_bias
from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import csa, csa_of
from circuitcore.records import Accuracy

SLACK = 1e-9  # 0.9 x reference is often met exactly and lost in rounding
SGD_STEPS = 2000
RESAMPLES = 10_000


@dataclass(frozen=True)
class Judge:
    """What one category's circuits are judged by on one set of N images.

    ``margin_max`` m_n float64 [N], ``is_target`` bool [N], ``unpruned`` the unpruned network's own
    target activation, float32 [N]; all on the CPU.
    """

    margin_max: Tensor
    is_target: Tensor
    unpruned: Tensor
    norm: str

    def __len__(self) -> int:
        return len(self.is_target)

    @cached_property
    def targets(self) -> int:
        """How many target images there are."""
        return len(self.target_at)

    @cached_property
    def margins(self) -> np.ndarray:
        """``margin_max`` as float64 [N]."""
        return self.margin_max.double().numpy()

    @cached_property
    def target_at(self) -> np.ndarray:
        """Which images are targets: int64 [P], in order."""
        return np.flatnonzero(self.is_target.numpy())

    @cached_property
    def unpruned_alarms(self) -> int:
        """The unpruned network's own false alarms at b = 0: what a matched bias may not exceed."""
        return self.at(self.unpruned, 0.0).false_alarms

    def predicted(self, activation: Tensor, bias: float) -> Tensor:
        """Which images are predicted as the category: a_n + b > m_n, decided as b > m_n - a_n."""
        return bias > torch.from_numpy(self.margins) - activation.double()

    def at(self, activation: Tensor, bias: float) -> Accuracy:
        """Accuracy of one activation [N] with a given bias."""
        return self.of(self.predicted(activation, bias), bias)

    def of(self, said: Tensor, bias: float) -> Accuracy:
        """Accuracy where the images ``said``, bool [N], are predicted as the category."""
        found = said.numpy()
        hits = int(np.count_nonzero(found[self.target_at]))
        return self.record(hits, int(np.count_nonzero(found)) - hits, bias)

    def fitted(self, activations: Tensor, how: str) -> list[Accuracy]:
        """Accuracy of each row of ``activations`` [L, N] with its bias fitted on these images.

        ``how``: ``matched`` finds the most hits at no more false alarms than the unpruned network
        makes on this whole set, ``exact`` the most CSA, ``none`` is 0, ``sgd`` trains it.
        """
        if how == "none":
            return [self.at(row, 0.0) for row in activations]
        if how == "sgd":
            return [
                self.at(row, b) for row, b in zip(activations, self._sgd(activations), strict=True)
            ]
        if how == "matched":
            return [self.matched(row) for row in activations.double().numpy()]
        best = best_bias(activations, self.margin_max, self.is_target, norm=self.norm)
        return [
            self.record(int(h), int(f), float(b))
            for h, f, b in zip(best.hits, best.false_alarms, best.bias, strict=True)
        ]

    def matched(self, activation: np.ndarray) -> Accuracy:
        """Accuracy of one activation, float64 [N], with its matched bias.

        Raises ValueError where a step is not finite or there is no target image.
        """
        steps = self.margins - activation
        if not np.isfinite(steps).all():
            raise ValueError("an activation or a margin is not finite")
        own = steps[self.target_at]
        steps[self.target_at] = np.inf  # what is left are the others
        return self.matched_at(own, steps)

    def matched_at(self, own: np.ndarray, others: np.ndarray) -> Accuracy:
        """Accuracy with a matched bias: all target images' steps and others' as `matched_bias`."""
        if not len(own):
            raise ValueError("no target image: CSA is undefined")
        bias, hits, false_alarms = matched_bias(own, others, self.unpruned_alarms)
        return self.record(hits, false_alarms, bias)

    def record(self, hits: int, false_alarms: int, bias: float) -> Accuracy:
        """Accuracy of so many hits and false alarms, at a bias."""
        targets = self.targets
        others = len(self.margins) - targets
        return Accuracy(
            hit=hits / targets,
            false_alarm=false_alarms / max(others, 1),
            false_alarms=false_alarms,
            csa=csa_of(hits, false_alarms, targets, others, self.norm),
            bias=bias,
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _sgd(self, activations: Tensor) -> list[float]:
        """The paper's trained bias: Adam on a sigmoid in place of the step, best bias visited.

        The sigmoid's width is a tenth of the steps' standard deviation in each row; the learning
        rate starts there too and halves eight times over 2,000 steps.
        """
        steps = self.margin_max - activations.double()
        targets, others = self.is_target.sum(), (~self.is_target).sum().clamp(min=1)
        norm = others if self.norm == "other" else targets
        share = torch.where(self.is_target, 1 / targets, -1 / norm).double()
        width = (steps.std(dim=1, correction=0) / 10).clamp(min=1e-6)
        place = torch.zeros(len(steps), dtype=torch.float64)  # of the bias, in widths
        adam = torch.optim.Adam([place], lr=1.0, eps=1e-12)
        slower = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: 0.5 ** (8 * n / SGD_STEPS))
        best = [self.at(row, 0.0) for row in activations]
        for step in range(1, SGD_STEPS + 1):
            soft = torch.sigmoid(place[:, None] - steps / width[:, None])
            place.grad = -(share * soft * (1 - soft)).sum(dim=1)
            adam.step()
            slower.step()
            if step % 20 == 0 or step < 20:
                biases = (place * width).tolist()
                seen = [self.at(row, b) for row, b in zip(activations, biases, strict=True)]
                best = [
                    new if new.csa > old.csa else old for new, old in zip(seen, best, strict=True)
                ]
        return [record.bias for record in best]

    def ratio_interval(
        self, activation: Tensor, bias: float, seed: int, unpruned_bias: float = 0.0
    ) -> tuple[float, float] | None:
        """Bootstrap 95 % interval of CSA over the unpruned CSA at ``unpruned_bias``.

        None where the unpruned CSA is not positive in over half of the resamples.
        """
        said = [self.predicted(activation, bias), self.predicted(self.unpruned, unpruned_bias)]
        circuit, plain = self._resampled(said, seed)
        return _interval(circuit, plain)

    def faithfulness_interval(
        self, said: Sequence[Tensor], seed: int
    ) -> tuple[float, float] | None:
        """Bootstrap 95 % interval of faithfulness; ``said``: by circuit, unpruned, empty, bool [N].

        None where the unpruned network is no better than the empty circuit in over half of the
        resamples.
        """
        circuit, plain, empty = self._resampled(said, seed)
        return _interval(circuit - empty, plain - empty)

    def difference_intervals(
        self, said: Sequence[Tensor], pairs: Sequence[tuple[int, int]], seed: int
    ) -> list[tuple[float, float]]:
        """Bootstrap 95 % intervals of CSA of one prediction minus that of another.

        ``said``: predictions, bool [N] each; ``pairs``: places in it of the two.  Paired: all are
        resampled together.
        """
        if all(torch.equal(each, said[0]) for each in said):
            return [(0.0, 0.0)] * len(pairs)
        csas, found = self._resampled(said, seed), []
        for one, other in pairs:
            low, high = np.quantile(csas[one] - csas[other], [0.025, 0.975])
            found.append((float(low), float(high)))
        return found

    def _resampled(self, said: Sequence[Tensor], seed: int) -> list[np.ndarray]:
        """CSA of each prediction on the same resamples, float64 [10,000] each.

        Images are resampled within targets and within others.  Only how many images fall into each
        cell (who says yes) matters, so a resample is two multinomial draws.
        """
        cells = np.zeros(len(self.is_target), np.int64)
        for each in said:
            cells = 2 * cells + each.numpy()
        count = 2 ** len(said)
        generator = np.random.default_rng([seed, 95])
        drawn, sizes = [], []
        for part in (self.is_target.numpy(), ~self.is_target.numpy()):
            counts = np.bincount(cells[part], minlength=count)
            sizes.append(counts.sum())
            chance = counts / max(counts.sum(), 1) if counts.sum() else np.eye(count)[0]
            drawn.append(generator.multinomial(counts.sum(), chance, size=RESAMPLES))
        targets, others = map(torch.tensor, sizes)
        found = []
        for place in range(len(said)):
            yes = (np.arange(count) >> (len(said) - 1 - place)) % 2 == 1
            hits, false = (torch.from_numpy(d[:, yes].sum(axis=1)) for d in drawn)
            found.append(csa(hits, false, targets, others, self.norm).numpy())
        return found


def _interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of part / whole where whole is positive; None where that is rare."""
    ratios = part[whole > 0] / whole[whole > 0]
    if len(ratios) < RESAMPLES / 2:
        return None
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def worth(found: Accuracy, bias: str) -> float:
    """What a level is judged by: its hit rate under a ``matched`` bias, else its CSA."""
    return found.hit if bias == "matched" else found.csa


def choose_level(values: Sequence[float], threshold: float, stop: str) -> int:
    """Position of the chosen level in a curve from dense to sparse; 0 where none is above.

    ``values``: each level's `worth`.  ``first-crossing``: the last level before it first drops
    below ``threshold``; ``sparsest-above``: the sparsest level not below it.
    """
    above = [value >= threshold - SLACK for value in values]
    if stop == "first-crossing":
        below = next((i for i, ok in enumerate(above) if not ok), len(above))
        return max(below - 1, 0)
    return max((i for i, ok in enumerate(above) if ok), default=0)


def ratio(value: float, reference: float) -> float | None:
    """value / reference, or None where the reference is not positive: undefined, never 0."""
    return value / reference if reference > 0 else None
