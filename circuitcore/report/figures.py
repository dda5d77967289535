"""The figures of a report as SVG text, to be inlined in a page (`figure_style` says how)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from circuitcore.analysis.rows import stage_names
from circuitcore.records import Category, Found, Stage, Sweep, Target, TargetStage
from circuitcore.report.figure_style import (
    CONV,
    FC,
    INK,
    MARK,
    MORE,
    MUTED,
    PAPER,
    blues,
    colour_bar,
    figure_of,
    marker,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 24  # of single curves; more categories than that get a band of quantiles
LOWEST_DRAWN = -0.25  # a circuit that is all false alarms can have a CSA far below 0
MOST_LABELS = 40  # of an overlap matrix
MOST_CELLS = 200  # along a side of one in a page; more circuits than that are averaged in blocks
FEWEST_TO_CLUSTER = 3


def sparsity_and_accuracy(document: Sweep) -> str:
    """Figure 1a: how much is pruned, and held-out CSA and hit rate pruned against unpruned."""
    found = [(c, c.circuit) for c in document.categories if c.circuit is not None]
    with figure_of(9.6, 3.7, "fig1a") as (figure, svg):
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_pruned(left, [circuit.pruned for _, circuit in found])
        draw_accuracy(right, document.categories)
        return str(svg())


def _draw_pruned(axes: Axes, pruned: Sequence[float]) -> None:
    """How much of the network each circuit leaves out."""
    values = np.array(pruned)
    _histogram(axes, values, FC)
    axes.set(xlabel="pruned fraction of the relevant weights", ylabel="circuits")
    if len(values):
        marker(axes, float(values.mean()), f"mean {values.mean():.3f}", INK, "-")


def draw_accuracy(axes: Axes, categories: Sequence[Category]) -> Axes:
    """Held-out CSA and hit rate of circuits against the unpruned network's.

    On the diagonal, the ceiling, nothing is lost; crosses are the empty circuits, the floor.
    """
    found = [(c, c.circuit) for c in categories if c.circuit is not None]
    axes.plot([-1, 1], [-1, 1], color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
    bare = [(c.unpruned.heldout.csa, c.empty.heldout.csa) for c, _ in found if c.empty]
    values = [v for pair in bare for v in pair if v >= LOWEST_DRAWN]
    if bare:
        axes.scatter(
            [x for x, _ in bare],
            [y for _, y in bare],
            s=24,
            marker="x",
            color=MUTED,
            linewidths=1.1,
            label="empty, CSA",
        )
    for label, colour, filled in (("CSA", FC, True), ("hit rate", CONV, False)):
        field = "csa" if label == "CSA" else "hit"
        x = [getattr(c.unpruned.heldout, field) for c, _ in found]
        y = [getattr(circuit.heldout, field) for _, circuit in found]
        values += [*x, *y]
        axes.scatter(
            x, y, s=26, label=label, zorder=3, linewidths=1.3,
            edgecolors=colour, facecolors=colour if filled else "none",
        )  # fmt: skip
    low = min([*values, 0.9]) - 0.05
    axes.set(
        xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal",
        xlabel="unpruned network, held-out", ylabel="circuit, held-out",
    )  # fmt: skip
    axes.legend(loc="upper left")
    return axes


def pruned_and_agreement(targets: Sequence[Target]) -> str:
    """How much is pruned, and how well circuits follow held-out, against random masks."""
    found = [(t, t.circuit) for t in targets if t.circuit is not None]
    with figure_of(9.6, 3.7, "fig1a") as (figure, svg):
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_pruned(left, [circuit.pruned for _, circuit in found])
        right.plot([-1, 1], [-1, 1], color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
        pairs = [(t.random_masks.heldout, c.heldout) for t, c in found if t.random_masks]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        right.scatter([x for x, _ in known], [y for _, y in known], s=26, color=FC, zorder=3)
        low = max(min([0.0, *(min(pair) for pair in known)]) - 0.05, LOWEST_DRAWN)
        right.set(
            xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal",
            xlabel="random mask, held-out", ylabel="circuit, held-out",
        )  # fmt: skip
        return str(svg())


def overlap_histogram(
    overlaps: np.ndarray, mean_chance: float | None, ceiling: float | None = None
) -> str:
    """Figure 1b: pairwise overlap of circuits, float [pairs], between chance and noise ceiling."""
    with figure_of(9.6, 3.0, "fig1b") as (figure, svg):
        axes = figure.subplots()
        _histogram(axes, overlaps, FC, [v for v in (mean_chance, ceiling) if v is not None])
        axes.set(xlabel="overlap of two circuits (intersection over union)", ylabel="pairs")
        if len(overlaps):
            mean = float(overlaps.mean())
            left = mean_chance is None or mean <= mean_chance
            marker(axes, mean, f"mean {mean:.3f}", INK, "-", left=left)
            if mean_chance is not None:
                label = f"chance {mean_chance:.3f}"
                marker(axes, mean_chance, label, MARK, "--", left=not left)
        if ceiling is not None:
            marker(axes, ceiling, f"noise ceiling {ceiling:.3f}", MARK, ":", row=1)
        return str(svg())


def curves(categories: Sequence[Found]) -> str:
    """What levels are worth against the kept fraction, a panel a category (evenly chosen)."""
    shown = [c for c in categories if c.stages]
    if len(shown) > MOST_PANELS:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, MOST_PANELS).astype(int)]
    columns = min(5, max(len(shown), 1))
    rows = max(-(-len(shown) // columns), 1)
    with figure_of(1.92 * max(columns, 3), 1.75 * rows + 0.75, "curves") as (figure, svg):
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, category in zip(grid, shown, strict=False):
            axes.set_title(short(category.category), parse_math=False)
            for stage in category.stages:
                _curve(axes, stage, [s.stage for s in category.stages])
            _ends(axes, category)
        for place, axes in enumerate(grid):
            axes.set_visible(place < len(shown))
            axes.tick_params(labelsize=8.5, labelbottom=place + columns >= len(shown))
        _log_kept(grid[0])
        seen = [v for c in shown for s in c.stages for v in _values(s)]
        grid[0].set_ylim(max(min([*seen, 0.0]) - 0.05, LOWEST_DRAWN), max([*seen, 1.0]) + 0.08)
        figure.supxlabel("kept fraction of the stage's weights (sparser to the right)", fontsize=10)
        figure.supylabel(height_label(shown), fontsize=10)
        handles, labels = _legend(grid[0])
        figure.legend(handles, labels, loc="outside upper left", ncols=4)
        return str(svg())


def curve_bands(categories: Sequence[Category]) -> str:
    """Median and quantiles over all categories of what levels are worth, a panel a stage.

    Past its stop a category has no levels; the band is of those that still have one.  Lines: the
    mean of the unpruned network and of the empty circuit.
    """
    with figure_of(9.6, 3.2, "bands") as (figure, svg):
        names = stage_names(categories)
        panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
        for axes, name in zip(panels, names, strict=True):
            colour = stage_colour(name, names)
            at: dict[int, list[tuple[float, float]]] = {}
            for stage in (s for c in categories for s in c.stages if s.stage == name):
                for level in stage.levels:
                    share = level.kept_weights / stage.relevant_weights
                    at.setdefault(level.level, []).append((share, getattr(level, judged(stage))))
            points = [np.array(at[t]) for t in sorted(at)]
            points = [p for p in points if p[0, 0] > 0]
            kept = [p[:, 0].mean() for p in points]
            for low, high in ((5, 95), (25, 75)):
                axes.fill_between(
                    kept,
                    [np.percentile(p[:, 1], low) for p in points],
                    [np.percentile(p[:, 1], high) for p in points],
                    color=colour, alpha=0.22, linewidth=0,
                )  # fmt: skip
            axes.plot(kept, [np.median(p[:, 1]) for p in points], color=colour)
            for height, shade in zip(_mean_ends(categories), (MUTED, MARK), strict=False):
                axes.axhline(height, color=shade, linewidth=0.9, zorder=1)
            axes.set_title(f"{name} stage: median, 25 to 75 %, 5 to 95 %")
            axes.set_xlabel("kept fraction of the stage's weights")
            _log_kept(axes)
        bottom, top = figure.axes[0].get_ylim()
        figure.axes[0].set_ylim(max(bottom, LOWEST_DRAWN), top)
        figure.axes[0].set_ylabel(height_label(categories))
        return str(svg())


def _mean_ends(categories: Sequence[Category]) -> list[float]:
    """Mean worth of the unpruned network and of the empty circuit; none where none is known."""
    known = [both for c in categories if (both := ends(c)) is not None]
    return np.mean(known, axis=0).tolist() if known else []


def overlap_matrix(
    names: Sequence[str], overlap: np.ndarray, marks: Mapping[str, float | None] | None = None,
    order: Sequence[int] | None = None,
) -> str:  # fmt: skip
    """Overlap of all pairs, float [K, K], in this order (default: `cluster_order`).

    Of more than `MOST_CELLS` circuits the means of square blocks of pairs.
    """
    side = 3.2 + 0.28 * min(len(names), 16)
    order = cluster_order(overlap) if order is None else order
    if len(overlap) > MOST_CELLS:
        overlap = block_means(overlap[np.ix_(order, order)], -(-len(overlap) // MOST_CELLS))
        order = range(len(overlap))
    with figure_of(side + 1.6, side, "matrix") as (figure, svg):
        draw_overlap(figure.subplots(), names, overlap, marks, order)
        return str(svg())


def block_means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of ``size`` x ``size`` blocks of a square array; those at its ends may be smaller."""
    starts = np.arange(0, len(values), size)
    sums = np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)
    sides = np.diff([*starts, len(values)])
    return np.asarray(sums / np.outer(sides, sides))


def draw_overlap(
    axes: Axes, names: Sequence[str], overlap: np.ndarray,
    marks: Mapping[str, float | None] | None = None, order: Sequence[int] | None = None,
) -> Axes:  # fmt: skip
    """Overlap of all pairs, float [K, K], in this order (default: `cluster_order`).

    ``marks``: what the bar of colours shows beside it, chance and the noise ceiling by name.
    """
    order = cluster_order(overlap) if order is None else order
    labelled = len(names) <= MOST_LABELS
    image = overlap[np.ix_(order, order)]
    axes.imshow(image, cmap=blues(), vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    ticks = range(len(names)) if labelled else []
    labels = [short(names[i]) for i in order] if labelled else []
    axes.set_xticks(ticks, labels, rotation=90, parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    if len(names) <= 12:
        for i, j in np.ndindex(image.shape):
            axes.text(j, i, f"{image[i, j]:.2f}", ha="center", va="center", fontsize=8)
    colour_bar(axes, "overlap", marks or {})
    return axes


def cluster_order(overlap: np.ndarray) -> list[int]:
    """Order of average-linkage clustering of 1 - overlap; as given below three circuits."""
    if len(overlap) < FEWEST_TO_CLUSTER:
        return list(range(len(overlap)))
    distance = 1 - (overlap + overlap.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(i) for i in leaves_list(tree)]


def draw_curves(axes: Axes, category: Found) -> Axes:
    """What levels are worth against the kept fraction of the stages of one category."""
    for stage in category.stages:
        _curve(axes, stage, [s.stage for s in category.stages])
    _ends(axes, category)
    axes.set_title(short(category.category), parse_math=False)
    axes.set_xlabel("kept fraction of the stage's weights (sparser to the right)")
    axes.set_ylabel(height_label([category]))
    if category.stages:
        _log_kept(axes)
        seen = [v for s in category.stages for v in _values(s)]
        axes.set_ylim(max(min([*seen, 0.0]) - 0.05, LOWEST_DRAWN), max([*seen, 1.0]) + 0.08)
        axes.legend(*_legend(axes), loc="lower left")
    return axes


def judged(stage: Stage | TargetStage) -> str:
    """What a stage's levels were judged by: ``hit`` or ``csa``, a target's ``value``."""
    if isinstance(stage, TargetStage):
        return "value"
    return "csa" if stage.threshold_hits is None else "hit"


def _values(stage: Stage | TargetStage) -> list[float]:
    """What its levels are worth, those that are undefined left out."""
    every = [getattr(level, judged(stage)) for level in stage.levels]
    return [value for value in every if value is not None]


def height_label(categories: Sequence[Found]) -> str:
    """What curves of these categories show."""
    if categories and isinstance(categories[0], Target):
        return f"{categories[0].judge}, extraction images"
    kinds = {judged(stage) for c in categories for stage in c.stages}
    return "hit rate, extraction images" if kinds == {"hit"} else "CSA, extraction images"


def threshold_of(stage: Stage | TargetStage) -> float:
    """What its levels were held to."""
    if isinstance(stage, TargetStage):
        return stage.threshold
    return stage.threshold_csa if stage.threshold_hits is None else stage.threshold_hits


def stage_colour(stage: str, stages: Sequence[str]) -> str:
    """The colour of a stage: ``fc`` and ``conv`` have their own, others those of their places."""
    own = {"fc": FC, "conv": CONV}
    if set(stages) <= set(own):
        return own[stage]
    palette = (FC, CONV, *MORE)
    return palette[list(stages).index(stage) % len(palette)]


def _curve(axes: Axes, stage: Stage | TargetStage, stages: Sequence[str]) -> None:
    colour, what = stage_colour(stage.stage, stages), judged(stage)
    threshold = threshold_of(stage)
    levels = [x for x in stage.levels if x.kept_weights > 0]  # a log axis has no 0
    kept = [x.kept_weights / stage.relevant_weights for x in levels]
    values = [np.nan if (v := getattr(x, what)) is None else v for x in levels]
    axes.plot(kept, values, color=colour, linewidth=1.4, label=stage.stage)
    sure = [x for x in stage.levels if x.kept_weights > 0] if isinstance(stage, Stage) else []
    if what == "csa" and any(x.csa_lo != x.csa_hi for x in sure):
        low, high = [x.csa_lo for x in sure], [x.csa_hi for x in sure]
        axes.fill_between(kept, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(threshold, color=colour, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.8)
    chosen = stage.levels[stage.chosen]
    if chosen.kept_weights:
        axes.plot(
            [chosen.kept_weights / stage.relevant_weights], [getattr(chosen, what)], "o",
            markersize=6, color=colour, markeredgecolor=PAPER, markeredgewidth=1.2, zorder=4,
        )  # fmt: skip


def ends(category: Found) -> tuple[float, float] | None:
    """What the unpruned network and the empty circuit are worth where a category's levels are."""
    if isinstance(category, Target) or category.empty is None or not category.stages:
        return None
    what = judged(category.stages[0])
    both = category.unpruned.extraction_biased, category.empty.extraction
    return getattr(both[0], what), getattr(both[1], what)


def _ends(axes: Axes, category: Found) -> None:
    """Ceiling and floor: the unpruned network, each at its best bias, and the empty circuit."""
    if (both := ends(category)) is not None:
        axes.axhline(both[0], color=MUTED, linewidth=0.9, zorder=1)
        axes.axhline(both[1], color=MARK, linewidth=0.9, zorder=1)


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    handles += [
        Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2))),
        Line2D([], [], color=MUTED, marker="o", linestyle="none", markersize=6),
        Line2D([], [], color=MUTED, linewidth=0.9),
        Line2D([], [], color=MARK, linewidth=0.9),
    ]
    said = "threshold", "chosen level", "unpruned", "empty circuit"
    return handles, [*(f"{label} stage" for label in labels), *said]


def _log_kept(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low = min([*(axes.get_xlim()), 0.5])
    axes.set_xlim(1.15, max(low, 5e-6))
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _histogram(axes: Axes, values: np.ndarray, colour: str, include: Sequence[float] = ()) -> None:
    """Forty bins over the tenths of [0, 1] that hold the values (and ``include``)."""
    seen = [*values, *include]
    low = np.floor(10 * min(seen, default=0) - 1e-9) / 10
    high = np.ceil(10 * max(seen, default=1) + 1e-9) / 10
    low, high = max(float(low), 0.0), min(float(high), 1.0)
    bins = np.linspace(low, high, 41).tolist()
    axes.hist(values, bins, color=colour, edgecolor=PAPER, linewidth=0.8)
    axes.set_xlim(low, high)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
