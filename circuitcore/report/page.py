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

from circuitcore.analysis.controls import control_means
from circuitcore.analysis.overlap import matrix
from circuitcore.analysis.rows import pruned_of, stage_names
from circuitcore.analysis.summary import interval, mean
from circuitcore.machine.files import write_atomically
from circuitcore.records import Sweep
from circuitcore.report import figure_style, figures

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


def write_report(folder: Path, document: Sweep, pairs: pa.Table) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Built from the committed circuits alone: their ``document`` and the `overlap.table` of them; the
    same run gives the same bytes.
    """
    names, overlap, chance = matrix(pairs)
    text = render(document, names, overlap, chance, control_means(folder))
    write_atomically(folder / FILE, text.encode("utf-8", "backslashreplace"))
    return folder / FILE


def render(
    document: Sweep,
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    controls: Sequence[dict[str, Any]] = (),
) -> str:
    """The page; ``overlap`` and ``chance`` float64 [K, K] over the circuits called ``names``."""
    first, second = np.triu_indices(len(names), k=1)
    pairs, expected = overlap[first, second], chance[first, second]
    mean_chance = float(expected.mean()) if len(expected) else None
    drawn = {
        "fig1a": figures.sparsity_and_accuracy(document),
        "fig1b": figures.overlap_histogram(pairs, mean_chance) if len(pairs) else "",
        "curves": figures.curves(document.categories),
        "bands": figures.curve_bands(document.categories)
        if len(document.categories) > figures.MOST_PANELS
        else "",
        "matrix": figures.overlap_matrix(names, overlap) if len(names) > 1 else "",
    }
    return _template().render(
        document=document,
        stages=stage_names(document.categories),
        pruned_of=pruned_of,
        run=document.run,
        summary=document.summary,
        found=_means(document),
        options=_options(document),
        cost=_cost(document),
        recomputed=sum(s.recomputed for c in document.categories for s in c.stages),
        overlap={"pairs": pairs, "mean": mean(pairs), "chance": mean_chance},
        controls=controls,
        most_panels=figures.MOST_PANELS,
        **{name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )


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
    planned = (document.run.get("plan") or {}).get("predicted", {})
    predicted = planned.get("target") or {}
    timed = f"seconds ({predicted['mark']})" if predicted else "seconds"
    if not costs:
        return []
    config = document.run.get("configuration", {})
    grids = {s: config.get(f"{s}_levels", ()) for s in stage_names(document.categories)}
    judged = [
        100 * sum(v.images for s in c.stages for v in s.levels[1:])
        / (c.stages[0].levels[0].images * sum(len(grids[s.stage]) - 1 for s in c.stages))
        for c in document.categories if c.stages and all(grids.values())
    ]  # fmt: skip

    def row(what: str, values: Sequence[float], form: str, plan: float | None) -> dict[str, str]:
        found = {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
        shown = {name: form.format(value) for name, value in found.items()}
        return {"what": what, **shown, "planned": "" if plan is None else form.format(plan)}

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
    if judged:
        rows.append(row("images judged, %", judged, "{:.0f}", None))
    return rows


def _options(document: Sweep) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that matter most, and the others."""
    every = {k: v for k, v in document.run.get("options", {}).items() if v is not None}
    main = {k.replace("_", " "): every[k] for k in MAIN if k in every}
    return main, {k.replace("_", " "): v for k, v in sorted(every.items()) if k not in MAIN}


def _template() -> jinja2.Template:
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
    return environment.get_template("report.html.j2")
