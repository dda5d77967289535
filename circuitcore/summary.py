"""Means over categories, each beside the baseline it is to be read against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuitcore.document import Category, Summary


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def summarise(records: Sequence[Category]) -> Summary:
    """The summary of a sweep: both the mean of ratios and the ratio of means.

    A category without a circuit, or with an undefined ratio, is counted and left out of the means
    that need it, never taken as 0.
    """
    found = [(r, r.circuit) for r in records if r.circuit is not None]
    circuits = [c for _, c in found]
    pruned = [c.pruned for c in circuits]
    ratios = [c.heldout.csa_ratio for c in circuits if c.heldout.csa_ratio is not None]
    csa = _mean([c.heldout.csa for c in circuits])
    unpruned = _mean([r.unpruned.heldout.csa for r, _ in found])
    return Summary(
        categories=len(records),
        undefined=len(records) - len(found),
        mean_pruned=_mean(pruned),
        sd_pruned=float(np.std(pruned, ddof=1)) if len(pruned) > 1 else None,
        mean_heldout_csa=csa,
        mean_unpruned_heldout_csa=unpruned,
        mean_heldout_hit=_mean([c.heldout.hit for c in circuits]),
        mean_unpruned_heldout_hit=_mean([r.unpruned.heldout.hit for r, _ in found]),
        mean_csa_ratio=_mean(ratios),
        ratio_of_means=csa / unpruned if csa is not None and unpruned else None,
    )
