"""Mean faithfulness curves of two runs in one figure, an SVG file that stands alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from circuitcore.analysis.area import LEAST, Curve, curves
from circuitcore.analysis.statistics import MIDDLE
from circuitcore.errors import InputError, UsageError, one_line
from circuitcore.machine.files import write_atomically
from circuitcore.report.figure_style import COLOURS, CONV, FC, MUTED, figure_of
from circuitcore.runs.folder import RunFolder

PLACES = 61  # kept fractions at which curves are averaged, evenly spaced in their logarithm
RESAMPLES = 2_000  # of categories, the same for all places of a band
LOWEST_DRAWN = -0.25


def write_curves(path: Path, a: RunFolder, b: RunFolder, what: str | None) -> None:
    """Draw `figure` into ``path``.  Raises UsageError where runs or path do not fit, InputError."""
    if what is None:
        raise UsageError("--plot: the two runs have other judges, their curves are of other things")
    if path.suffix != ".svg":
        raise UsageError(f"--plot {path}: a name that ends in .svg")
    text = figure({"A": curves(a, what), "B": curves(b, what)}, [a.folder.name, b.folder.name])
    try:
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise InputError(f"--plot {path}: cannot be written: {error}") from None


def figure(runs: Mapping[str, Mapping[tuple[str, str], Curve]], names: Sequence[str]) -> str:
    """A panel a stage: both runs' mean faithfulness over the same categories, with 95 % bands.

    Each mean is drawn as far as all those categories' curves go, in both runs.
    """
    (own, other), stages = (
        runs.values(),
        list(dict.fromkeys(s for r in runs.values() for _, s in r)),
    )
    with figure_of(4.8 * max(len(stages), 1), 3.4, "compare") as (drawn, svg):
        panels = np.atleast_1d(drawn.subplots(1, max(len(stages), 1), sharey=True))
        for axes, stage in zip(panels, stages, strict=False):
            both = [name for name, s in own if s == stage and (name, s) in other]
            for found, label, colour, line in (
                (own, f"A {one_line(names[0])}", FC, "-"),
                (other, f"B {one_line(names[1])}", CONV, "--"),
            ):
                if both:
                    mine = [found[name, stage] for name in both]
                    kept, mean, low, high = band(mine)
                    axes.plot(kept, mean, line, color=colour, label=label)
                    axes.fill_between(kept, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.axhline(1, color=MUTED, linewidth=0.8)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xlim(1.15, LEAST * 0.9)
            axes.set_title(f"{stage} stage, {len(both)} categories", parse_math=False)
            axes.set_xlabel("kept fraction of the stage's weights")
        panels[0].set_ylabel("faithfulness, extraction images")
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, LOWEST_DRAWN), high)
        if panels[0].get_legend_handles_labels()[0]:
            panels[0].legend(loc="lower left")
        return alone(str(svg()))


def band(found: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Kept fractions, dense to sparse, and mean, low and high of phi there: float64 [P] each.

    Between levels phi is a straight line in ln k, as it is drawn.
    """
    least = max(curve.least for curve in found)
    kept = np.geomspace(1, least, PLACES)
    rows = []
    for curve in found:
        some = curve.kept > 0
        line = np.log(curve.kept[some])[::-1], curve.phi[some][::-1]
        rows.append(np.interp(np.log(kept), *line))
    every = np.array(rows)
    drawn = np.random.default_rng(0).multinomial(len(rows), [1 / len(rows)] * len(rows), RESAMPLES)
    low, high = np.quantile(drawn / len(rows) @ every, MIDDLE, axis=0)
    return kept, every.mean(0), low, high


def alone(svg: str) -> str:
    """The figure outside of a page: colours as they are, a white ground."""
    for colour, variable in COLOURS.items():
        svg = svg.replace(f"var({variable})", colour)
    return re.sub(
        r"(<svg[^>]*?)( style=\"[^\"]*\")?>", r'\1 style="background:#fff">', svg, count=1
    )
