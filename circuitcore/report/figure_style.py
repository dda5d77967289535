"""How the report's figures look, and how they become SVG text for a page that sets their colours.

Colours are names of CSS variables, so that a figure follows the page into dark mode; text stays
text; the same document gives the same bytes (no dates, ids from a fixed salt).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from circuitcore.errors import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# the page's light colours; in the SVG they become its variables, elsewhere they are what they say
COLOURS = {
    "#22262b": "--ink",
    "#6b737c": "--muted",
    "#e6e7e3": "--grid",
    "#2f6db3": "--fc",
    "#c9702b": "--conv",
    "#a63d57": "--mark",
    "#fbfbf9": "--paper",
}
INK, MUTED, GRID, FC, CONV, MARK, PAPER = COLOURS
MORE = "#3d8f6a", "#7a5ab0", "#b0a12f", "#4aa3b5"  # of stages beyond the second; read on both pages
SAID = {  # what figures are called where they are not seen
    "fig1a": "Histogram of pruned fractions; circuits against what they are held against, held out",
    "fig1b": "Histogram of the overlap of two circuits",
    "curves": "What levels are worth against the kept fraction, a panel a category",
    "bands": "What levels are worth against the kept fraction: median and quantiles",
    "matrix": "Overlap of all pairs of circuits",
    "depth": "Overlap of circuits by layer",
    "lesioned": "What categories lose to lesions",
    "readings": "Readings of the method: how sparse, and how accurate held out",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def figure_of(width: float, height: float, name: str, **layout: Any) -> Iterator[tuple[Any, Any]]:
    """A figure in the report's style and a function that gives its SVG."""
    style: dict[Any, Any] = {
        **matplotlib.rcParamsDefault,
        **STYLE,
        "svg.hashsalt": f"circuitcore-{name}",
    }
    style.pop("backend", None)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs missing from a font that is not used anyway
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(width, height), layout="constrained", **layout)
        FigureCanvasSVG(figure)

        def svg() -> str:
            return as_svg(figure, name)

        yield figure, svg


def as_svg(figure: Figure, name: str) -> str:
    """The figure as SVG text: colours by variable, ids that start with ``name``.

    What matplotlib says of all lines in a style element stands as attributes of the whole: a page
    lets no style element in but its own.
    """
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in COLOURS.items():
        text = text.replace(stand_in, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    width, height = figure.get_size_inches() * 72
    limit = "" if width > height * 1.5 else f' style="max-width:{width:.0f}pt"'
    return re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg class="figure" role="img" aria-label="{SAID.get(name, name)}" viewBox="\1"{limit} '
        r'stroke-linejoin="round" stroke-linecap="butt" '
        r'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )


def short(name: str) -> str:
    """A category name of at most 22 characters, on one line."""
    name = one_line(name)
    return name if len(name) <= 22 else name[:21] + "…"


def marker(
    axes: Axes, at: float, label: str, colour: str, style: str, left: bool | None = None,
    row: int = 0,
) -> None:  # fmt: skip
    """A vertical line with its label at the top, on the side that has room, in a row above it."""
    axes.axvline(at, color=colour, linewidth=1.2, linestyle=style)
    low, high = axes.get_xlim()
    place = (at - low) / (high - low)
    left = place > 0.5 if left is None or not 0.15 <= place <= 0.85 else left
    axes.annotate(
        label, (at, 1.0), xycoords=("data", "axes fraction"), color=colour, va="bottom",
        xytext=(-4 if left else 4, 1 + 12 * row), textcoords="offset points",
        ha="right" if left else "left",
    )  # fmt: skip


def blues() -> ListedColormap:
    """One blue that grows opaque: it reads on a light page and on a dark one."""
    shades = np.tile(np.array([0.23, 0.47, 0.76, 1.0]), (256, 1))
    shades[:, 3] = np.linspace(0.03, 0.92, 256)
    return ListedColormap(shades)


def colour_bar(axes: Axes, label: str, marks: Mapping[str, float | None]) -> None:
    """A bar of `blues` from 0 to 1 beside ``axes``, with a line at each known mark, named."""
    bar = axes.inset_axes((1.05, 0.0, 0.04, 1.0))
    bar.imshow(np.linspace(1, 0, 128)[:, None], cmap=blues(), aspect="auto",
               extent=(0, 1, 0, 1), vmin=0, vmax=1)  # fmt: skip
    bar.grid(False)
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.spines[:].set_visible(False)
    known = {name: at for name, at in marks.items() if at is not None}
    for name, at in known.items():
        bar.axhline(at, color=MARK, linewidth=1.4)
        bar.annotate(name, (1, at), xytext=(26, 0), textcoords="offset points", color=MARK,
                     va="center", fontsize=8.5, annotation_clip=False)  # fmt: skip
    bar.set_xlabel(label, fontsize=9)
    bar.xaxis.set_label_position("top")
