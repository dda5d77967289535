"""One self-contained HTML file of a run: what was found, beside what it is to be read against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from circuitcore.analysis.controls import CONTROLS, control_means
from circuitcore.analysis.overlap import matrix
from circuitcore.analysis.rows import Judged, pruned_of, stage_names
from circuitcore.analysis.summary import mean
from circuitcore.analysis.targets import target_control_means
from circuitcore.machine.files import write_atomically
from circuitcore.progress import Progress
from circuitcore.records import Found, Sweep, TargetSweep
from circuitcore.report import figures
from circuitcore.report.headline import headline
from circuitcore.report.inline.data import page_data
from circuitcore.report.inline.pages import linked, write_pages
from circuitcore.report.inline.pictures import Pictures, album_of, drawings_of, pictures_of
from circuitcore.report.means import cost, cost_rows, means, target_means
from circuitcore.report.science import Science, science_of
from circuitcore.report.templates import template
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.intact import sealed_page

FILE = "report.html"
# a file of 1,000 categories stays below 5 MB: images and drawings of each are for smaller runs,
# larger ones have pages of their own
MOST_WITH_IMAGES = 60
MOST_SHOWN = 8  # hits, misses, false alarms of a category
SIDE = 32  # pixels of a picture
MAIN = ("levels", "threshold", "stop", "reference", "magnitude", "granularity", "bias",
        "false_alarm_norm", "scoring_images", "extraction_images", "heldout_images")  # fmt: skip


JUDGES = {
    "correlation": "their correlation",
    "spearman": "the correlation of their ranks",
    "error": "the share of their variance that is not lost, 1 − Σ (a − a₀)² ÷ Σ (a₀ − mean)²",
}
MAIN_OF_TARGETS = ("target", "pool_target", "judge", *MAIN)


def write_report(
    run: RunFolder, document: Sweep | TargetSweep, pairs: pa.Table, pages: Progress | None = None
) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Built from what lies there alone: the ``document`` of its circuits, the `overlap.table` of them,
    and what verbs asked of them since; small pictures of the run's images are of the files that the
    manifest names, as long as they are there.  The same run and images give the same bytes.
    ``pages``: write ``pages/UNIT.html`` of every category too, and say so to this.
    """
    (names, overlap, chance), folder = matrix(pairs), run.folder
    science = science_of(run, document, pairs)
    if pages is not None:
        write_pages(run, document, overlap, FILE, pages)
        pages.start("report", 1)
    if isinstance(document, Sweep):
        units = [category.index for category in document.categories]
        most = MOST_SHOWN if len(units) <= MOST_WITH_IMAGES else 0
        pictures = pictures_of(album_of(run), units, SIDE, most)
        if most:
            pictures = replace(pictures, drawings=drawings_of(run, units))
        controls = control_means(folder)
        text = render(document, names, overlap, chance, controls, science, pictures, linked(folder))
    else:
        controls = target_control_means(folder / CONTROLS)
        text = render_targets(document, names, overlap, chance, controls, science, linked(folder))
    write_atomically(folder / FILE, sealed_page(text.encode("utf-8", "backslashreplace")))
    return folder / FILE


def render(
    document: Sweep,
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    controls: Sequence[dict[str, Any]] = (),
    science: Science | None = None,
    pictures: Pictures | None = None,
    pages: str = "",
) -> str:
    """The page; ``overlap`` and ``chance`` float64 [K, K] over the circuits called ``names``.

    ``controls``: `control_means`; ``science``: what else was asked of the run; ``pages``: where
    those of single categories are.
    """
    science, pictures = science or Science(), pictures or Pictures()
    order = figures.cluster_order(overlap)
    shared, drawn = _overlap(names, overlap, chance, order, science.ceiling)
    drawn |= {
        "fig1a": figures.sparsity_and_accuracy(document),
        "curves": figures.curves(document.categories),
        "bands": figures.curve_bands(document.categories)
        if len(document.categories) > figures.MOST_PANELS
        else "",
    }
    return template("report.html.j2").render(
        document=document,
        data=_data(document.categories, overlap, order, pictures, pages),
        headline=headline(document, controls, shared),
        stages=stage_names(document.categories),
        pruned_of=pruned_of,
        run=document.run,
        summary=document.summary,
        found=means(document),
        options=_options(document, MAIN),
        cost=cost(document),
        recomputed=sum(s.recomputed for c in document.categories for s in c.stages),
        overlap=shared,
        controls=controls,
        science=science,
        judged=Judged.of(document.run),
        most_panels=figures.MOST_PANELS,
        **{name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )


def render_targets(
    document: TargetSweep,
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    controls: Sequence[dict[str, Any]] = (),
    science: Science | None = None,
    pages: str = "",
) -> str:
    """The page of a run of other targets than categories; arguments as those of `render`."""
    order = figures.cluster_order(overlap)
    shared, drawn = _overlap(names, overlap, chance, order)
    drawn |= {
        "fig1a": figures.pruned_and_agreement(document.targets),
        "curves": figures.curves(document.targets),
    }
    judge = document.run["options"]["judge"]
    costs = [target.cost for target in document.targets]
    return template("targets.html.j2").render(
        document=document,
        data=_data(document.targets, overlap, order, Pictures(), pages),
        run=document.run,
        summary=document.summary,
        found=target_means(document),
        options=_options(document, MAIN_OF_TARGETS),
        cost=cost_rows(costs, document.run),
        judge=judge,
        judged=JUDGES[judge],
        stages=list(dict.fromkeys(s.stage for t in document.targets for s in t.stages)),
        overlap=shared,
        controls=controls,
        science=science or Science(),
        most_panels=figures.MOST_PANELS,
        **{name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )


def _overlap(
    names: Sequence[str],
    overlap: np.ndarray,
    chance: np.ndarray,
    order: Sequence[int],
    ceiling: float | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """What pairs of circuits share, and the figures of it."""
    first, second = np.triu_indices(len(names), k=1)
    pairs, expected = overlap[first, second], chance[first, second]
    mean_chance = float(expected.mean()) if len(expected) else None
    marks = {"chance": mean_chance, "ceiling": ceiling}
    drawn = {
        "fig1b": figures.overlap_histogram(pairs, mean_chance, ceiling) if len(pairs) else "",
        "matrix": figures.overlap_matrix(names, overlap, marks, order) if len(names) > 1 else "",
    }
    shared = {"pairs": pairs, "mean": mean(pairs), "chance": mean_chance, "ceiling": ceiling}
    return shared, drawn


def _data(
    found: Sequence[Found],
    overlap: np.ndarray,
    order: Sequence[int],
    pictures: Pictures,
    pages: str,
) -> dict[str, Any]:
    """The script's data, with what to say where a category shows no images of its own."""
    aside = pictures.missing
    if len(found) > MOST_WITH_IMAGES and not pages:
        aside = "Hits, misses, false alarms and drawing: circuitcore report RUN --pages."
    elif pictures.thumbs and not pictures.seen and not pages:
        aside = "Which images it hits is not known: runs keep it since version 0.2."
    return {**page_data(found, overlap, order, pictures), "pages": pages, "aside": aside}


def _options(
    document: Sweep | TargetSweep, first: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that matter most, and the others."""
    every = {k: v for k, v in document.run.get("options", {}).items() if v is not None}
    main = {k.replace("_", " "): every[k] for k in first if k in every}
    return main, {k.replace("_", " "): v for k, v in sorted(every.items()) if k not in first}
