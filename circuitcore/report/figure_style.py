"""How the report's figures look, and how they become SVG text for a page that sets their colours.

Colours are names of CSS variables, so that a figure follows the page into dark mode; text stays
text; the same document gives the same bytes (no dates, ids from a fixed salt).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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


def clean(name: str) -> str:
    """A category name on one line of XML: control characters and line ends escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


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
    """The figure as SVG text: colours by variable, ids that start with ``name``."""
    out = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in COLOURS.items():
        text = text.replace(stand_in, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", text)
    width, height = figure.get_size_inches() * 72
    limit = "" if width > height * 1.5 else f' style="max-width:{width:.0f}pt"'
    return re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg class="figure" role="img" viewBox="\1"{limit} '
        r'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        text,
        count=1,
    )


def short(name: str) -> str:
    """A category name of at most 22 characters, on one line."""
    name = clean(name)
    return name if len(name) <= 22 else name[:21] + "…"
