"""Circuit substitution accuracy (CSA) and the bias, level and interval that follow from it.

The circuit's activation a_n stands in for the target unit's: image n is predicted as the category
iff a_n + b > m_n, m_n the largest other logit of the unpruned network.  CSA = hit rate minus false
alarms over ``norm`` (Andrade & Konkle 2025, Circuit extraction); all arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitcore.kernels.best_bias.operation import best_bias
from circuitcore.kernels.best_bias.reference import csa
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

    def predicted(self, activation: Tensor, bias: float) -> Tensor:
        """Which images are predicted as the category: a_n + b > m_n, decided as b > m_n - a_n."""
        return bias > self.margin_max - activation.double()

    def at(self, activation: Tensor, bias: float) -> Accuracy:
        """Accuracy of one activation [N] with a given bias."""
        said = self.predicted(activation, bias)
        hits = int((said & self.is_target).sum())
        return self.record(hits, int((said & ~self.is_target).sum()), bias)

    def fitted(self, activations: Tensor, how: str = "exact") -> list[Accuracy]:
        """Accuracy of each row of ``activations`` [L, N] with its bias fitted on these images.

        ``how``: ``exact`` finds the bias that maximises CSA, ``none`` is 0, ``sgd`` trains it.
        """
        if how == "none":
            return [self.at(row, 0.0) for row in activations]
        if how == "sgd":
            return [
                self.at(row, b) for row, b in zip(activations, self._sgd(activations), strict=True)
            ]
        best = best_bias(activations, self.margin_max, self.is_target, norm=self.norm)
        return [
            self.record(int(h), int(f), float(b))
            for h, f, b in zip(best.hits, best.false_alarms, best.bias, strict=True)
        ]

    def record(self, hits: int, false_alarms: int, bias: float) -> Accuracy:
        """Accuracy of so many hits and false alarms, at a bias."""
        targets = int(self.is_target.sum())
        others = self.is_target.numel() - targets
        hit, false, target, other = map(torch.tensor, (hits, false_alarms, targets, others))
        value = csa(hit, false, target, other, self.norm)
        return Accuracy(
            hit=hits / targets,
            false_alarm=false_alarms / max(others, 1),
            false_alarms=false_alarms,
            csa=float(value),
            bias=bias,
        )

    def _sgd(self, activations: Tensor) -> list[float]:
        """The paper's trained bias: Adam on a sigmoid in place of the step, best bias visited.

        The sigmoid's width is a tenth of the steps' standard deviation in each row; the learning
        rate starts there too and halves eight times over 2,000 steps.
        """
        steps = (self.margin_max - activations.double()).numpy()
        target = self.is_target.numpy()
        others = max(int((~target).sum()), 1)
        norm = others if self.norm == "other" else int(target.sum())
        share = np.where(target, 1 / target.sum(), -1 / norm)
        width = np.maximum(steps.std(axis=1) / 10, 1e-6)
        bias = np.zeros(len(steps))
        first, second = np.zeros(len(steps)), np.zeros(len(steps))
        best = [self.at(row, 0.0) for row in activations]
        for step in range(1, SGD_STEPS + 1):
            soft = 1 / (1 + np.exp(np.clip((steps - bias[:, None]) / width[:, None], -60, 60)))
            gradient = -(share * soft * (1 - soft)).sum(axis=1) / width
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            rate = width * 0.5 ** (8 * step / SGD_STEPS)
            bias -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
            if step % 20 == 0 or step < 20:
                seen = [self.at(row, float(b)) for row, b in zip(activations, bias, strict=True)]
                best = [
                    new if new.csa > old.csa else old for new, old in zip(seen, best, strict=True)
                ]
        return [record.bias for record in best]

    def ratio_interval(
        self, activation: Tensor, bias: float, seed: int
    ) -> tuple[float, float] | None:
        """Bootstrap 95 % interval of CSA over the unpruned CSA at bias 0.

        Images are resampled within targets and within others, 10,000 times, the same images for
        both networks.  Only how many images fall into each (circuit says, unpruned says) cell
        matters, so a resample is two multinomial draws.  None where the unpruned CSA is not
        positive, or is not in over half of the resamples.
        """
        circuit = self.predicted(activation, bias)
        plain = self.predicted(self.unpruned, 0.0)
        cells = (2 * circuit.int() + plain.int()).numpy()
        generator = np.random.default_rng([seed, 95])
        drawn, sizes = [], []
        for part in (self.is_target.numpy(), ~self.is_target.numpy()):
            counts = np.bincount(cells[part], minlength=4)
            sizes.append(counts.sum())
            chance = counts / max(counts.sum(), 1) if counts.sum() else np.array([1.0, 0, 0, 0])
            drawn.append(generator.multinomial(counts.sum(), chance, size=RESAMPLES))
        accuracy = []
        for said in ((2, 3), (1, 3)):
            hits, false = (torch.from_numpy(d[:, list(said)].sum(axis=1)) for d in drawn)
            targets, others = map(torch.tensor, sizes)
            accuracy.append(csa(hits, false, targets, others, self.norm).numpy())
        ratios = accuracy[0][accuracy[1] > 0] / accuracy[1][accuracy[1] > 0]
        if len(ratios) < RESAMPLES / 2:
            return None
        low, high = np.quantile(ratios, [0.025, 0.975])
        return float(low), float(high)


def choose_level(csas: Sequence[float], threshold: float, stop: str) -> int:
    """Position of the chosen level in a curve from dense to sparse; 0 where none is above.

    ``first-crossing``: the last level before CSA first drops below ``threshold``;
    ``sparsest-above``: the sparsest level not below it.
    """
    above = [value >= threshold - SLACK for value in csas]
    if stop == "first-crossing":
        below = next((i for i, ok in enumerate(above) if not ok), len(above))
        return max(below - 1, 0)
    return max((i for i, ok in enumerate(above) if ok), default=0)


def ratio(value: float, reference: float) -> float | None:
    """value / reference, or None where the reference is not positive: undefined, never 0."""
    return value / reference if reference > 0 else None
