"""One self-contained HTML file of a run: what was found, beside what it is to be read against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from markupsafe import Markup

from circuitcore.analysis.controls import CONTROLS, control_means
from circuitcore.analysis.overlap import matrix
from circuitcore.analysis.resampling.kept import WHOLE, mean_ceilings
from circuitcore.analysis.rows import pruned_of, stage_names
from circuitcore.analysis.summary import interval, mean
from circuitcore.analysis.targets import target_control_means
from circuitcore.machine.files import write_atomically
from circuitcore.records import Cost, Sweep, TargetSweep
from circuitcore.report import figure_style, figures
from circuitcore.runs.intact import sealed_page

FILE = "report.html"
BOUNDS = {
    "Pruned": (0.0, 1.0),
    "CSA, held-out": (-math.inf, 1.0),
    "CSA of the empty circuit": (-math.inf, 1.0),
    "Hit rate, held-out": (0.0, 1.0),
    "False alarms, held-out": (0.0, 1.0),
}
MAIN = ("levels", "threshold", "stop", "reference", "magnitude", "granularity", "bias",
        "false_alarm_norm", "scoring_images", "extraction_images", "heldout_images")  # fmt: skip


JUDGES = {
    "correlation": "their correlation",
    "spearman": "the correlation of their ranks",
    "error": "the share of their variance that is not lost, 1 − Σ (a − a₀)² ÷ Σ (a₀ − mean)²",
}
MAIN_OF_TARGETS = ("target", "pool_target", "judge", *MAIN)


def write_report(folder: Path, document: Sweep | TargetSweep, pairs: pa.Table) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Built from the committed circuits alone: their ``document`` and the `overlap.table` of them; the
    same run gives the same bytes.
    """
    names, overlap, chance = matrix(pairs)
    if isinstance(document, Sweep):
        ceiling = mean_ceilings(folder).get(WHOLE)
        text = render(document, names, overlap, chance, control_means(folder), ceiling)
    else:
        controls = target_control_means(folder / CONTROLS)
        text = render_targets(document, names, overlap, chance, controls)
    write_atomically(folder / FILE, sealed_page(text.encode("utf-8", "backslashreplace")))
    return folder / FILE


def render(
    document: Sweep,
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    controls: Sequence[dict[str, Any]] = (),
    ceiling: float | None = None,
) -> str:
    """The page; ``overlap`` and ``chance`` float64 [K, K] over the circuits called ``names``,
    ``ceiling`` the mean overlap of two circuits of one category where it was looked for."""
    shared, drawn = _overlap(names, overlap, chance)
    shared["ceiling"] = ceiling
    drawn |= {
        "fig1a": figures.sparsity_and_accuracy(document),
        "curves": figures.curves(document.categories),
        "bands": figures.curve_bands(document.categories)
        if len(document.categories) > figures.MOST_PANELS
        else "",
    }
    return _template("report.html.j2").render(
        document=document,
        stages=stage_names(document.categories),
        pruned_of=pruned_of,
        run=document.run,
        summary=document.summary,
        found=_means(document),
        options=_options(document, MAIN),
        cost=_cost(document),
        recomputed=sum(s.recomputed for c in document.categories for s in c.stages),
        overlap=shared,
        controls=controls,
        most_panels=figures.MOST_PANELS,
        **{name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )


def render_targets(
    document: TargetSweep,
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    controls: Sequence[dict[str, Any]] = (),
) -> str:
    """The page of a run of other targets than categories; arguments as those of `render`."""
    shared, drawn = _overlap(names, overlap, chance)
    drawn |= {
        "fig1a": figures.pruned_and_agreement(document.targets),
        "curves": figures.curves(document.targets),
    }
    judge = document.run["options"]["judge"]
    costs = [target.cost for target in document.targets]
    return _template("targets.html.j2").render(
        document=document,
        run=document.run,
        summary=document.summary,
        found=_target_means(document),
        options=_options(document, MAIN_OF_TARGETS),
        cost=_cost_rows(costs, document.run),
        judge=judge,
        judged=JUDGES[judge],
        stages=list(dict.fromkeys(s.stage for t in document.targets for s in t.stages)),
        overlap=shared,
        controls=controls,
        most_panels=figures.MOST_PANELS,
        **{name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )


def _overlap(
    names: Sequence[str], overlap: np.ndarray, chance: np.ndarray
) -> tuple[dict[str, Any], dict[str, str]]:
    """What pairs of circuits share, and the figures of it."""
    first, second = np.triu_indices(len(names), k=1)
    pairs, expected = overlap[first, second], chance[first, second]
    mean_chance = float(expected.mean()) if len(expected) else None
    drawn = {
        "fig1b": figures.overlap_histogram(pairs, mean_chance) if len(pairs) else "",
        "matrix": figures.overlap_matrix(names, overlap) if len(names) > 1 else "",
    }
    return {"pairs": pairs, "mean": mean(pairs), "chance": mean_chance}, drawn


def _target_means(document: TargetSweep) -> list[dict[str, Any]]:
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


def _means(document: Sweep) -> list[dict[str, Any]]:
    """Means over categories with their intervals, each beside its baseline."""
    found = [(c, c.circuit) for c in document.categories if c.circuit is not None]
    ratios = [k.heldout.csa_ratio for _, k in found if k.heldout.csa_ratio is not None]
    biased = [k.heldout.csa_ratio_biased for _, k in found
              if k.heldout.csa_ratio_biased is not None]  # fmt: skip
    empty = [c.empty.heldout.csa for c, _ in found if c.empty is not None]
    faithful = [c.faithfulness.heldout for c, _ in found
                if c.faithfulness is not None and c.faithfulness.heldout is not None]  # fmt: skip
    rows = [
        ("Pruned", "of all relevant weights", [k.pruned for _, k in found], None),
        ("CSA, held-out", "of the circuits; the unpruned network's at its own bias beside it",
         [k.heldout.csa for _, k in found], [c.unpruned.heldout_biased.csa for c, _ in found]),
        ("CSA of the empty circuit", "no weight at all, with a bias of its own", empty, None),
        ("Hit rate, held-out", "of the circuits; the unpruned network's beside it",
         [k.heldout.hit for _, k in found], [c.unpruned.heldout_biased.hit for c, _ in found]),
        ("False alarms, held-out", "fraction of other images; the unpruned network's beside it",
         [k.heldout.false_alarm for _, k in found],
         [c.unpruned.heldout_biased.false_alarm for c, _ in found]),
        ("CSA ratio", "to the unpruned network at its own bias, like with like", biased, None),
        ("CSA ratio at bias 0", "to the unpruned network without a bias", ratios, None),
        ("Faithfulness", "0 is the empty circuit, 1 the unpruned network", faithful, None),
    ]  # fmt: skip
    return [
        {
            "what": what,
            "note": note,
            "mean": mean(values),
            "interval": interval(values, *BOUNDS.get(what, (-math.inf, math.inf))),
            "baseline": mean(baseline) if baseline else None,
        }
        for what, note, values, baseline in rows
    ]


def _cost(document: Sweep) -> list[dict[str, str]]:
    """What the categories took, each beside what was planned before the run."""
    costs = [c.cost for c in document.categories]
    rows = _cost_rows(costs, document.run)
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


def _cost_rows(costs: Sequence[Cost], run: dict[str, Any]) -> list[dict[str, str]]:
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


def _options(
    document: Sweep | TargetSweep, first: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that matter most, and the others."""
    every = {k: v for k, v in document.run.get("options", {}).items() if v is not None}
    main = {k.replace("_", " "): every[k] for k in first if k in every}
    return main, {k.replace("_", " "): v for k, v in sorted(every.items()) if k not in first}


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("circuitcore", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda v, d=1: "NA" if v is None else f"{100 * v:.{d}f} %"
    environment.filters["number"] = lambda v, d=3: "NA" if v is None else f"{v:.{d}f}"
    environment.filters["signed"] = lambda v: "NA" if v is None else f"{v:+.2f}"
    environment.filters["whole"] = lambda v: "NA" if v is None else f"{v:,}"
    environment.filters["clean"] = lambda v: figure_style.clean(str(v))
    return environment.get_template(name)
