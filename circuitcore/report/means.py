"""Rows of the report's tables that are means over categories or targets, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from circuitcore.analysis.rows import Judged, stage_names
from circuitcore.analysis.summary import counted_interval, interval, mean
from circuitcore.records import Accuracy, Cost, Sweep, TargetSweep

BOUNDS = {"Pruned": (0.0, 1.0), "Precision, held-out": (0.0, 1.0)}
NOTES = {
    "Pruned": "of all relevant weights",
    "CSA, held-out": "of the circuits; the unpruned network's at its own bias beside it",
    "CSA of the empty circuit": "no weight at all, with a bias of its own",
    "Hit rate, held-out": "of the circuits; the unpruned network's beside it",
    "False alarms, held-out": "fraction of other images; the unpruned network's beside it",
    "d′, held-out": "how far both kinds of images lie apart, in standard deviations",
    "Precision, held-out": "hits among all images said to be the category",
    "CSA ratio": "to the unpruned network at its own bias, like with like",
    "CSA ratio at bias 0": "to the unpruned network without a bias",
    "Faithfulness": "0 is the empty circuit, 1 the unpruned network",
}

Row = dict[str, Any]


def target_means(document: TargetSweep) -> list[Row]:
    """Means over targets with their intervals, each beside the random masks'."""
    found = [(t.circuit, t.random_masks) for t in document.targets if t.circuit is not None]
    rows: list[tuple[str, str, list[float], list[float]]] = [
        ("Pruned", "of all relevant weights", [c.pruned for c, _ in found], [])
    ]
    for name, what in (("extraction", "Agreement"), ("heldout", "Agreement, held-out")):
        own = [v for c, _ in found if (v := getattr(c, name)) is not None]
        random = [v for _, m in found if m is not None and (v := getattr(m, name)) is not None]
        rows.append((what, "of the circuits; a random mask's beside it", own, random))
    return [
        {
            "what": what,
            "note": note,
            "mean": mean(values),
            "interval": interval(values, most=1.0),
            "baseline": mean(baseline),
        }
        for what, note, values, baseline in rows
    ]


def means(document: Sweep) -> list[Row]:
    """Means over categories, each beside the unpruned network's, with `summary`'s intervals."""
    found = [(c, c.circuit) for c in document.categories if c.circuit is not None]
    own = [circuit.heldout for _, circuit in found]
    whole = [c.unpruned.heldout_biased for c, _ in found]
    empty = [c.empty.heldout for c, _ in found if c.empty is not None]
    faithful = [c.faithfulness.heldout for c, _ in found if c.faithfulness is not None]
    judged = Judged.of(document.run)

    def counted(what: str, name: str, at: Sequence[Accuracy]) -> Row:
        """A row of what is counted on images."""
        ends = counted_interval(at, document.run, name)
        baseline = [getattr(each, name) for each in whole] if at is own else []
        return _row(what, [getattr(each, name) for each in at], ends, baseline)

    return [
        _alone("Pruned", [circuit.pruned for _, circuit in found]),
        counted("CSA, held-out", "csa", own),
        counted("CSA of the empty circuit", "csa", empty),
        counted("Hit rate, held-out", "hit", own),
        counted("False alarms, held-out", "false_alarm", own),
        _alone("d′, held-out", *_of(judged.d_prime, own, whole)),
        _alone("Precision, held-out", *_of(judged.precision, own, whole)),
        _alone("CSA ratio", [each.csa_ratio_biased for each in own]),
        _alone("CSA ratio at bias 0", [each.csa_ratio for each in own]),
        _alone("Faithfulness", faithful),
    ]


def _of(
    measure: Callable[[Accuracy], float | None], *sides: Sequence[Accuracy]
) -> tuple[list[float | None], ...]:
    return tuple([measure(each) for each in side] for side in sides)


def _alone(what: str, values: Sequence[float | None], beside: Sequence[float | None] = ()) -> Row:
    """A row of what only categories are drawn for."""
    known = [value for value in values if value is not None]
    ends = interval(known, *BOUNDS.get(what, (-math.inf, math.inf)))
    return _row(what, known, ends, [v for v in beside if v is not None])


def _row(
    what: str, values: Sequence[float], ends: tuple[float, float] | None, baseline: Sequence[float]
) -> Row:
    return {
        "what": what,
        "note": NOTES[what],
        "mean": mean(values),
        "interval": ends,
        "baseline": mean(baseline),
    }


def cost(document: Sweep) -> list[dict[str, str]]:
    """What the categories took, each beside what was planned before the run."""
    costs = [c.cost for c in document.categories]
    rows = cost_rows(costs, document.run)
    config = document.run.get("configuration", {})
    grids = {s: config.get(f"{s}_levels", ()) for s in stage_names(document.categories)}
    judged = [
        100 * sum(v.images for s in c.stages for v in s.levels[1:])
        / (c.stages[0].levels[0].images * sum(len(grids[s.stage]) - 1 for s in c.stages))
        for c in document.categories if c.stages and all(grids.values())
    ]  # fmt: skip
    return [*rows, _cost_row("images judged, %", judged, "{:.0f}", None)] if judged else rows


def _cost_row(what: str, values: Sequence[float], form: str, plan: float | None) -> dict[str, str]:
    found = {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
    shown = {name: form.format(value) for name, value in found.items()}
    return {"what": what, **shown, "planned": "" if plan is None else form.format(plan)}


def cost_rows(costs: Sequence[Cost], run: dict[str, Any]) -> list[dict[str, str]]:
    """What categories or targets took, each beside what was planned before the run."""
    planned = (run.get("plan") or {}).get("predicted", {})
    predicted = planned.get("target") or {}
    timed = f"seconds ({predicted['mark']})" if predicted else "seconds"
    if not costs:
        return []
    row = _cost_row
    rows = [
        row("FPE", [c.fpe for c in costs], "{:.2f}", planned.get("fpe")),
        *(
            row(f"FPE, {name}", values, "{:.2f}", None)
            for name in ("sweep", "certify", "heldout", "floor")
            if (values := [v for c in costs if (v := getattr(c, f"fpe_{name}")) is not None])
        ),
        row(timed, [c.seconds for c in costs], "{:.1f}", predicted.get("seconds_per_category")),
        row("memory, MB", [c.memory_bytes / 1e6 for c in costs], "{:.0f}",
            planned.get("memory_bytes", 0) / 1e6 or None),
    ]  # fmt: skip
    return rows
