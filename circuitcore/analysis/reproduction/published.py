"""What was published, figure by figure, and how far a reading's own is from it.

Andrade & Konkle 2025 (CCN), Results: AlexNet, 1,000 categories of ImageNet.  The authors' abstract
of the same year (VSS 2025) is of the same network and images without a free bias.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One published figure: ``of`` names a reading's own; ``compared``: part of the distance.

    Not compared is what depends on how well a network knows its categories, and what was published
    as a bound.
    """

    of: str
    what: str
    value: float
    compared: bool = True
    percent: bool = True


PUBLISHED = {
    "paper": (
        Figure("pruned", "mean sparsity of the circuits", 0.453),
        Figure("pruned_sd", "its standard deviation over categories", 0.162),
        Figure("ratio", "held-out accuracy of circuits over the unpruned network's", 0.909),
        Figure("heldout_csa", "held-out accuracy of the circuits", 0.475, compared=False),
        Figure("unpruned_csa", "held-out accuracy of the unpruned network", 0.523, compared=False),
    ),
    "vss": (
        Figure("kept_median", "median fraction of weights kept at 85 % of the accuracy", 0.05),
        Figure("peak", "median peak of the accuracy, over the unpruned network's", 1.88),
        Figure("peak_kept", "median fraction of weights kept at the peak", 0.133),
        Figure("overlap_min", "smallest overlap of two circuits (published: below)", 0.01,
               compared=False),
        Figure("overlap_max", "largest overlap of two circuits (published: above)", 0.99,
               compared=False),
    ),
}  # fmt: skip
