"""Figures of what was asked of circuits since: sharing by depth, categories under lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitcore.analysis.across.structure import SharedRow
from circuitcore.report.figure_style import FC, MARK, blues, colour_bar, figure_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELS = 40
NAMED = {"circuit": "without a circuit", "private": "without its private weights"}


def sharing_by_depth(rows: Sequence[SharedRow]) -> str:
    """Overlap of all pairs by layer, mean and range, between chance and the noise ceiling."""
    with figure_of(9.6, 3.2, "depth") as (figure, svg):
        draw_sharing(figure.subplots(), rows)
        return str(svg())


def draw_sharing(axes: Axes, rows: Sequence[SharedRow]) -> Axes:
    """Layers in module order from left to right."""
    places = np.arange(len(rows))
    axes.fill_between(places, [r.min for r in rows], [r.max for r in rows], color=FC, alpha=0.15,
                      linewidth=0, label="smallest to largest")  # fmt: skip
    axes.plot(places, [r.mean for r in rows], "o-", color=FC, label="mean of all pairs")
    axes.plot(places, [r.chance for r in rows], "--", color=MARK, label="chance")
    ceilings = [np.nan if row.ceiling is None else row.ceiling for row in rows]
    if not np.isnan(ceilings).all():
        axes.plot(places, ceilings, ":", color=MARK, label="noise ceiling")
    step = max(1, -(-len(rows) // 16))
    labels = [short(row.layer) for row in rows[::step]]
    axes.set_xticks(places[::step], labels, rotation=30, ha="right", parse_math=False)
    axes.set(ylabel="overlap of two circuits", ylim=(-0.02, 1.02))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def lesion_matrices(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """CSA that categories lose to lesions, and to random ones of their size: two panels a kind."""
    first = next(iter(kept.values()))
    rows, columns = first["change"].shape
    side = 3.6 / max(rows, columns)
    height = max(1.4, side * rows) + (1.3 if columns <= MOST_LABELS else 0.5)
    with figure_of(9.6, height * len(kept) + 0.3, "lesioned") as (figure, svg):
        grid = figure.subplots(len(kept), 2, squeeze=False)
        for line, (kind, each) in zip(grid, kept.items(), strict=True):
            draw_losses(line[0], each, "change", NAMED[kind])
            draw_losses(line[1], each, "random", "a random lesion of its size")
            marks = {"all of it": float(np.clip(each["unpruned"].mean(), 0, 1)), "nothing": 0.0}
            colour_bar(line[1], "CSA lost", marks)
        return str(svg())


def draw_losses(axes: Axes, kept: Mapping[str, Any], what: str, title: str) -> Axes:
    """One matrix, a row a lesion and a column a category; what is gained shows as nothing lost."""
    values = np.clip(-kept[what], 0, 1) + 0.0  # no -0
    axes.imshow(values, cmap=blues(), vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5)
    axes.set_title(title)
    for place, names in ((axes.xaxis, kept["categories"]), (axes.yaxis, kept["lesions"])):
        labelled = len(names) <= MOST_LABELS and (place is axes.xaxis or what == "change")
        labels = [short(name) for name in names] if labelled else []
        turned = 90 if place is axes.xaxis else 0
        place.set_ticks(range(len(labels)), labels, parse_math=False, rotation=turned)
    if max(values.shape) <= 12:
        for i, j in np.ndindex(values.shape):
            axes.text(j, i, f"{values[i, j]:.2f}".lstrip("0") if values[i, j] < 1 else "1",
                      ha="center", va="center", fontsize=7.5)  # fmt: skip
    return axes
