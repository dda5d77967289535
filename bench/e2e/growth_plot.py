"""How the work of a sweep grows, as a picture: ``python bench/e2e/growth_plot.py docs/growth.svg``.

Counted on the bundled network by the functions of `test_growth`, so it is the same on every machine
that runs the CPU path; about two minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("svg")
sys.path.insert(0, str(Path(__file__).parent))

from matplotlib.figure import Figure  # noqa: E402
from test_growth import IMAGES, LEVELS, work  # noqa: E402

Curve = tuple[str, Sequence[int], list[float]]
RULES = {
    "every level": ("off", "first-crossing"),
    "first-crossing": ("on", "first-crossing"),
    "sparsest-above": ("on", "sparsest-above"),
}
COUNT = 5  # categories added up


def counted() -> dict[str, list[Curve]]:
    """FPE a category by levels; multiply-adds a category by images and in all by categories."""
    found: dict[str, list[Curve]] = {"levels": [], "images": [], "categories": []}
    for name, (screen, stop) in RULES.items():
        rows = [work(screen, stop, levels=str(n), extraction_images=5) for n in LEVELS]
        found["levels"].append((name, LEVELS, [(fc + conv) / once for fc, conv, once in rows]))
        rows = [work(screen, stop, levels="16", extraction_images=n) for n in IMAGES]
        found["images"].append((name, IMAGES, [(fc + conv) / 2e6 for fc, conv, _ in rows]))
        each = [work(screen, stop, (u,), levels="8", extraction_images=5) for u in range(COUNT)]
        total = list(accumulate((fc + conv) / 1e6 for fc, conv, _ in each))
        found["categories"].append((name, range(1, COUNT + 1), total))
    return found


def draw(found: dict[str, list[Curve]]) -> Figure:
    """One panel each, log-log; dotted: linear growth from the first point."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    titles = {
        "levels": ("levels a stage", "FPE a category"),
        "images": ("extraction images a category", "million multiply-adds a category"),
        "categories": ("categories", "million multiply-adds in all"),
    }
    for axes, (what, curves) in zip(figure.subplots(1, 3), found.items(), strict=True):
        for name, sizes, values in curves:
            (line,) = axes.plot(sizes, values, marker="o", ms=4, label=name)
            linear = [values[0] * size / sizes[0] for size in sizes]
            axes.plot(sizes, linear, ls=":", lw=1, color=line.get_color())
        axes.set(xscale="log", yscale="log", xlabel=titles[what][0], ylabel=titles[what][1])
        axes.set_xticks(list(curves[0][1]), [str(size) for size in curves[0][1]], minor=False)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    draw(counted()).savefig(sys.argv[1], metadata={"Date": None})
