"""Means over categories, each beside the baseline it is to be read against.

Means of what is counted on images (CSA, hit rate, false alarms) have hierarchical bootstrap
intervals: categories are drawn, then the images of each.  Ratios and faithfulness set two
predictions of the same images side by side, and records keep no pairs: theirs are of the mean over
categories alone, as that of the pruned fraction is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from circuitcore.analysis import overlap
from circuitcore.analysis.rows import Judged
from circuitcore.analysis.statistics import Part, bootstrap_of_counts
from circuitcore.machine.files import read_sealed
from circuitcore.records import (
    Accuracy,
    Category,
    Found,
    Summary,
    Sweep,
    Target,
    TargetSummary,
    TargetSweep,
)
from circuitcore.runs.folder import PLAN, RunFolder

NO_RATIO = "no ratio: the unpruned network's held-out CSA is not above 0 at its own bias"
NO_FAITHFULNESS = "no faithfulness: the unpruned network is no better than the empty circuit"


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def summarise(records: Sequence[Category], run: Mapping[str, Any] | None = None) -> Summary:
    """The summary of a sweep: both the mean of ratios and the ratio of means.

    A category without a circuit, or whose circuit has an undefined ratio, is counted and left out
    of the means that need it, never taken as 0.  ``run``: the manifest, which intervals need.
    """
    found = [(r, r.circuit) for r in records if r.circuit is not None]
    circuits = [c for _, c in found]
    pruned = [c.pruned for c in circuits]
    ratios = [c.heldout.csa_ratio_biased for c in circuits]
    faithful = [r.faithfulness.heldout for r, _ in found if r.faithfulness is not None]
    without = {NO_RATIO: ratios.count(None), NO_FAITHFULNESS: faithful.count(None)}
    reasons = Counter(r.undefined or "no circuit" for r in records if r.circuit is None)
    own = mean([r.unpruned.heldout_biased.csa for r, _ in found])
    csa = mean([c.heldout.csa for c in circuits])
    unpruned = mean([r.unpruned.heldout.csa for r, _ in found])
    heldout = [c.heldout for c in circuits]
    ends = {} if run is None else {k: counted_interval(heldout, run, k) for k in ("csa", "hit")}
    return Summary(
        categories=len(records),
        undefined=dict(reasons),
        mean_pruned=mean(pruned),
        sd_pruned=float(np.std(pruned, ddof=1)) if len(pruned) > 1 else None,
        mean_heldout_csa=csa,
        mean_unpruned_heldout_csa=unpruned,
        mean_unpruned_heldout_csa_biased=own,
        mean_heldout_hit=mean([c.heldout.hit for c in circuits]),
        mean_unpruned_heldout_hit=mean([r.unpruned.heldout.hit for r, _ in found]),
        mean_unpruned_heldout_hit_biased=mean([r.unpruned.heldout_biased.hit for r, _ in found]),
        undefined_heldout={reason: count for reason, count in without.items() if count},
        mean_csa_ratio=mean([r for r in ratios if r is not None]),
        ratio_of_means=_ratio(csa, own),
        ratio_of_means_unbiased=_ratio(csa, unpruned),
        mean_faithfulness=mean([f for f in faithful if f is not None]),
        no_better_than_random=[
            r.category for r, _ in found if r.random_masks is not None and r.random_masks.as_good
        ],
        mean_heldout_csa_ci95=ends.get("csa"),
        mean_heldout_hit_ci95=ends.get("hit"),
    )


def counted_interval(
    found: Sequence[Accuracy], run: Mapping[str, Any], what: str = "csa", split: str = "heldout"
) -> tuple[float, float] | None:
    """95 % interval of a mean over categories: of their ``csa``, ``hit`` or ``false_alarm``.

    ``found``: an accuracy a category, on one split of the run whose manifest is ``run``.
    """
    judged, options = Judged.of(run, split), run.get("options", {})
    if min(judged) < 1:
        return None
    to_target = options.get("false_alarm_norm") == "target"
    cost = judged.others / judged.targets if to_target else 1.0
    worth = {"csa": (1.0, -cost), "hit": (1.0, 0.0), "false_alarm": (0.0, 1.0)}[what]
    groups = [
        [
            Part(count, of, each)
            for count, of, each in zip(
                (judged.hits(accuracy), accuracy.false_alarms), judged, worth, strict=True
            )
            if each
        ]
        for accuracy in found
    ]
    return bootstrap_of_counts(groups, [int(options.get("seed", 0)), 95])


def summarise_targets(records: Sequence[Target]) -> TargetSummary:
    """The summary of a sweep of targets; those without a circuit are counted and left out."""
    found = [(r, r.circuit) for r in records if r.circuit is not None]
    pruned = [circuit.pruned for _, circuit in found]
    reasons = Counter(r.undefined or "no circuit" for r in records if r.circuit is None)
    masks = [r.random_masks for r, _ in found if r.random_masks is not None]

    def means(values: Iterable[float | None]) -> float | None:
        return mean([value for value in values if value is not None])

    return TargetSummary(
        targets=len(records),
        undefined=dict(reasons),
        mean_pruned=mean(pruned),
        sd_pruned=float(np.std(pruned, ddof=1)) if len(pruned) > 1 else None,
        mean_extraction=means(circuit.extraction for _, circuit in found),
        mean_heldout=means(circuit.heldout for _, circuit in found),
        mean_random_heldout=means(each.heldout for each in masks),
        no_better_than_random=[
            r.category for r, _ in found if r.random_masks is not None and r.random_masks.as_good
        ],
    )


def _ratio(value: float | None, reference: float | None) -> float | None:
    """None where the reference is not positive, as of a single category."""
    return None if value is None or reference is None or reference <= 0 else value / reference


def interval(
    values: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> tuple[float, float] | None:
    """95 % interval of the mean over categories (Student's t), within ``least`` and ``most``.

    None for fewer than two values.
    """
    if len(values) < 2:
        return None
    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return max(mean - half, least), min(mean + half, most)


def document(run: RunFolder, records: Sequence[Found], pairs: pa.Table) -> Sweep | TargetSweep:
    """The JSON document of a run's finished categories, with the `overlap.table` of them."""
    about = {**run.manifest, "folder": str(run.folder), "plan": _plan(run, records)}
    shared = overlap.summary(pairs)
    if run.of_targets:
        targets = [record for record in records if isinstance(record, Target)]
        return TargetSweep(
            schema="circuitcore.targets/1",
            run=about,
            targets=targets,
            overlap=shared,
            summary=summarise_targets(targets),
        )
    categories = [record for record in records if isinstance(record, Category)]
    return Sweep(
        schema="circuitcore.sweep/2",
        run=about,
        categories=categories,
        overlap=shared,
        summary=summarise(categories, about),
    )


def _plan(run: RunFolder, records: Sequence[Found]) -> dict[str, Any] | None:
    """What was predicted before the run, beside what the finished categories took."""
    try:
        planned = dict(read_sealed(run.folder / PLAN))
    except (OSError, ValueError, TypeError):
        return None
    keys = ("fpe", "fpe_upper", "shared_fpe", "memory_bytes", "disk_bytes")
    costs = [record.cost for record in records]
    count = max(len(costs), 1)
    return {
        "predicted": {key: planned[key] for key in keys if key in planned},
        "actual": {
            "fpe": sum(cost.fpe for cost in costs) / count,
            "multiply_adds": sum(cost.multiply_adds for cost in costs),
            "seconds": sum(cost.seconds for cost in costs),
            "memory_bytes": max((cost.memory_bytes for cost in costs), default=0),
        },
    }
