"""A made-up category of 1,000, with AlexNet's margins and a real network's movement.

ImageNet and AlexNet's published weights need not be here, so what a sweep of one of 1,000
categories looks at is counted on made-up activations: 20 target images and 19,980 others.

Unpruned, everything is normal, and only steps d_n = m_n - a_n matter.
- Others: the target logit has mean 0 and s.d. 2.8, the largest other logit mean 13 and s.d. 2.74,
  independent.  Steps then have mean 13 and s.d. 3.92, and at bias 0 about 9 of 19,980 are below 0:
  false alarms, as many as the misses of a category with a hit rate of 0.55.  From category to
  category the target logit's mean differs with s.d. 0.5, which makes 9 false alarms 3 to 20.
- Targets: the largest other logit has mean 12 and s.d. 2.74, the target logit s.d. 2.9 and the mean
  that gives the category's hit rate.  Hit rates are spread like Beta(3.3, 2.7): mean 0.55, s.d.
  0.19.

A stage moves them as it moved the images of a category of the real network (`margins.Recorded`),
targets and others apart, three parts a level:
- the group's mean moves by the same part of the distance between the two groups' means;
- what an image is off its group's mean is multiplied as the real images' regression on their own
  unpruned value says;
- its own path beside the regression is that of a real image that stood at a similar place in its
  group (within a tenth of its images), times a factor of its own (lognormal, s.d. 0.25), so that
  20,000 images are no copies of 400.
Deviations are measured in unpruned standard deviations of the group.

Not in the model: that a real category of 1,000 has a few others that confuse it more than a normal
tail says, that more of its scores are zero than those of ten categories, and that what moves
20,000 images may have a longer tail than 400 show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuitcore.extraction.accuracy import Judge

IMAGES, TARGETS = 20_000, 20
CONV = {  # AlexNet's multiply-adds of one image of 224 pixels
    "features.0": 70_276_800,
    "features.3": 223_948_800,
    "features.6": 112_140_288,
    "features.8": 149_520_384,
    "features.10": 99_680_256,
}
FC = {"classifier.1": 37_748_736, "classifier.4": 16_777_216, "classifier.6": 4_096}
DENSE = sum(CONV.values()) + sum(FC.values()) + 999 * 4_096  # all 1,000 outputs: one FPE an image


@dataclass(frozen=True)
class Category:
    """``target`` bool [N]; ``margin`` and ``unpruned`` activation, float64 [N]."""

    target: np.ndarray
    margin: np.ndarray
    unpruned: np.ndarray

    def judge(self, norm: str) -> Judge:
        return Judge(
            torch.from_numpy(self.margin),
            torch.from_numpy(self.target),
            torch.from_numpy(self.unpruned).float(),
            norm,
        )


def category(random: np.random.Generator) -> Category:
    """One category; the target images come in no order."""
    from scipy.stats import norm

    target = np.zeros(IMAGES, bool)
    target[random.permutation(IMAGES)[:TARGETS]] = True
    margin = random.normal(np.where(target, 12.0, 13.0), 2.74)
    hit = np.clip(random.beta(3.3, 2.7), 0.05, 0.95)
    mean = 12 + norm.ppf(hit) * np.hypot(2.74, 2.9)
    others = random.normal(0, 0.5)
    unpruned = random.normal(np.where(target, mean, others), np.where(target, 2.9, 2.8))
    return Category(target, margin, unpruned)


def moved(
    random: np.random.Generator,
    start: np.ndarray,
    target: np.ndarray,
    rows: np.ndarray,
    real_target: np.ndarray,
) -> Tensor:
    """Activations float32 [L, N] of a stage that begins at ``start`` [N].

    ``rows`` [L, n]: a real network's at the same levels, ``real_target`` [n] its target images.
    """
    rows = rows.astype(np.float64)
    groups = [(target, real_target), (~target, ~real_target)]
    centres = [start[made].mean() for made, _ in groups]
    real_centres = [rows[:, real].mean(1) for _, real in groups]
    stretch = (centres[0] - centres[1]) / (real_centres[0][0] - real_centres[1][0])
    out = np.empty((len(rows), len(start)))
    for (made, real), centre, real_centre in zip(groups, centres, real_centres, strict=True):
        path = centre + stretch * (real_centre - real_centre[0])
        off = rows[:, real] - real_centre[:, None]
        slope = (off @ off[0]) / (off[0] @ off[0])
        residual = off - slope[:, None] * off[0]
        own = start[made] - centre
        scale = own.std() / off[0].std()
        place = (own.argsort().argsort() + 0.5) / len(own) + random.uniform(-0.1, 0.1, len(own))
        near = np.clip(place * off.shape[1], 0, off.shape[1] - 1).astype(np.int64)
        donor = off[0].argsort()[near]
        factor = scale * random.lognormal(0, 0.25, len(own))
        out[:, made] = path[:, None] + slope[:, None] * own + factor * residual[:, donor]
    return torch.from_numpy(out).float()
