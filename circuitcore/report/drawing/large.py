"""A circuit drawn large: layer by layer its units, what connects them, what they see."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path as Curve

from circuitcore.analysis.anatomy.anatomy import Anatomy, AnatomyLayer, Ribbon, Unit
from circuitcore.analysis.anatomy.pictures import Pictures
from circuitcore.errors import one_line
from circuitcore.records import Category, Found
from circuitcore.report.drawing.layout import Layout, Sizes, layout
from circuitcore.report.figure_style import CONV, FC, GRID, INK, MUTED, STYLE, short

PAPER = "#ffffff"
SIZES = Sizes(left=2.0, column=1.85, line=0.86, head=0.95, least=0.3, most=0.64, top=0.95,
              bottom=0.75)  # fmt: skip
SHARED = LinearSegmentedColormap.from_list("shared", ["#d9822b", "#8d8d95", "#2f6db3"])
MAPS = LinearSegmentedColormap.from_list("maps", ["#f4f5f7", "#8fa9cc", "#1d3f73"])
IMAGE, THUMB, FILTER = 1.3, 0.34, 0.34  # inches
WIDEST = 9.0  # points of a ribbon


def draw(found: Anatomy, record: Found, seen: Pictures) -> Figure:
    """The figure; ``seen``: the pixels in and beside units.  Raises nothing."""
    style: dict[Any, Any] = {**STYLE, "axes.grid": False, "image.composite_image": False}
    with matplotlib.rc_context(style):
        at = layout(found, SIZES)
        figure = Figure(figsize=(at.width + 0.3, at.height), facecolor=PAPER)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, at.width + 0.3), ylim=(0, at.height))
        axes.axis("off")
        colours = {layer.layer: _colour(layer) for layer in found.layers}
        strongest: dict[str, float] = {}
        for ribbon in found.ribbons:
            strongest[ribbon.layer] = max(strongest.get(ribbon.layer, 0.0), ribbon.flow)
        for ribbon in sorted(found.ribbons, key=lambda each: each.flow):
            _ribbon(axes, at, ribbon, strongest[ribbon.layer], colours[ribbon.layer])
        _example(axes, found, at, seen)
        for layer in found.layers:
            _head(axes, at, layer)
            for unit in layer.shown:
                _unit(axes, found, at, layer, unit, seen)
        _title(axes, at, found, record)
        _legend(axes, at, found, seen)
    return figure


def _colour(layer: AnatomyLayer) -> str:
    return FC if layer.stage == "fc" else CONV


def _ribbon(axes: Any, at: Layout, ribbon: Ribbon, strongest: float, colour: str) -> None:
    """A curve from one unit to another, as wide as its flow beside the ``strongest`` into that
    layer; none from row to row.
    """
    one, other = (at.nodes[ribbon.source, ribbon.source_unit], at.nodes[ribbon.layer, ribbon.unit])
    if one.row != other.row:
        return
    share = ribbon.flow / strongest
    begin, end = (one.x + one.half, one.y), (other.x - other.half, other.y)
    _curve(axes, begin, end, 0.4 + (WIDEST - 0.4) * share, colour, 0.16 + 0.34 * share)


def _curve(
    axes: Any, begin: tuple[float, float], end: tuple[float, float], width: float, colour: str,
    alpha: float,
) -> None:  # fmt: skip
    bend = (end[0] - begin[0]) / 2
    points = [begin, (begin[0] + bend, begin[1]), (end[0] - bend, end[1]), end]
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    axes.add_patch(
        PathPatch(
            Curve(points, codes),
            facecolor="none",
            edgecolor=colour,
            linewidth=width,
            alpha=alpha,
            capstyle="butt",
            zorder=1,
        )  # fmt: skip
    )


def _example(axes: Any, found: Anatomy, at: Layout, seen: Pictures) -> None:
    """The image the circuit is shown, with thin lines to the units of the first layer."""
    x, y = SIZES.left / 2 - 0.12, at.rows[0]
    _image(axes, seen.example, x, y, IMAGE, INK)
    said = {True: "a hit", False: "a miss", None: ""}[seen.hit]
    axes.text(x, y - IMAGE / 2 - 0.12, short(seen.name.rpartition("/")[2]), ha="center", va="top",
              fontsize=7.5, color=MUTED)  # fmt: skip
    axes.text(x, y + IMAGE / 2 + 0.1, f"example, {said}" if said else "example", ha="center",
              va="bottom", fontsize=8.5, color=INK)  # fmt: skip
    first = found.layers[0]
    for unit in first.shown:
        node = at.nodes[first.layer, unit.unit]
        if node.row == 0:
            end = (node.x - node.half, node.y)
            _curve(axes, (x + IMAGE / 2, y), end, 0.5 + 6 * unit.flow, MUTED, 0.35)


def _head(axes: Any, at: Layout, layer: AnatomyLayer) -> None:
    """What is said of a layer above its units."""
    x, y = at.heads[layer.layer]
    axes.text(x, y - 0.12, layer.layer, ha="center", va="top", fontsize=9.5, color=_colour(layer),
              fontweight="bold")  # fmt: skip
    dead = layer.nominal - layer.live
    lines = [f"{layer.units_live:,} of {layer.units:,} units", f"{layer.live:,} weights live"]
    lines.append(f"{dead:,} dead" if dead else "none dead")
    hidden = layer.units_live - len(layer.shown)
    if hidden > 0:
        lines[0] += f", {len(layer.shown)} here"
    axes.text(x, y - 0.32, "\n".join(lines), ha="center", va="top", fontsize=7.5, color=MUTED,
              linespacing=1.25)  # fmt: skip


def shade(unit: Unit, others: int) -> str:
    """The colour of a unit: private, or shared with all other circuits."""
    if unit.shared is None or not others:
        return INK
    return str(to_hex(SHARED(unit.shared / others)))


def _unit(
    axes: Any, found: Anatomy, at: Layout, layer: AnatomyLayer, unit: Unit, seen: Pictures
) -> None:
    place = (layer.layer, unit.unit)
    node, colour = at.nodes[place], shade(unit, found.others)
    value = seen.maps[place]
    if value.size > 1:
        _image(axes, value, node.x, node.y, 2 * node.half, colour)
    else:
        fill = str(to_hex(MAPS(min(max(_part(seen, place), 0), 1))))
        axes.add_patch(Circle((node.x, node.y), node.half, facecolor=fill, edgecolor=colour,
                              linewidth=2.2, zorder=3))  # fmt: skip
    last = unit.shared is None
    name, points = (short(found.category), 8.5) if last else (str(unit.unit), 6.8)
    axes.text(node.x, node.y - node.half - 0.03, name, ha="center", va="top", fontsize=points,
              color=INK, zorder=4)  # fmt: skip
    right = node.x + node.half + 0.05
    if place in seen.filters:
        _image(axes, seen.filters[place], node.x - node.half - 0.05 - FILTER / 2, node.y, FILTER,
               MUTED)  # fmt: skip
    for number, image in enumerate(seen.exemplars[place]):
        y = node.y + (0.5 - number) * (THUMB + 0.03)
        _image(axes, image, right + THUMB / 2, y, THUMB, GRID)


def _part(seen: Pictures, place: tuple[str, int]) -> float:
    """A unit's activation over the largest of the units shown of its layer."""
    own = [float(value.max()) for (layer, _), value in seen.maps.items() if layer == place[0]]
    return float(seen.maps[place].max()) / (max(own) or 1.0)


def _image(axes: Any, pixels: np.ndarray, x: float, y: float, side: float, edge: str) -> None:
    """Pixels in a square of ``side`` inches; of numbers alone in the colours of maps."""
    tall, wide = pixels.shape[:2]
    half = np.array([wide, tall]) / max(wide, tall) * side / 2
    extent = (x - half[0], x + half[0], y - half[1], y + half[1])
    single = {"cmap": MAPS, "vmin": 0, "vmax": float(pixels.max()) or 1.0}
    axes.imshow(pixels, extent=extent, interpolation="nearest", zorder=3, aspect="auto",
                **(single if pixels.ndim == 2 else {}))  # fmt: skip
    axes.add_patch(Rectangle((extent[0], extent[2]), *(2 * half), facecolor="none", edgecolor=edge,
                             linewidth=2.2 if pixels.ndim == 2 else 0.8, zorder=3))  # fmt: skip


def _title(axes: Any, at: Layout, found: Anatomy, record: Found) -> None:
    assert record.circuit is not None
    top = at.height - 0.16
    axes.text(
        0.2, top, one_line(found.category), fontsize=15, fontweight="bold", va="top", color=INK
    )
    dead = found.nominal - found.live
    said = (
        f"{found.nominal:,} weights kept ({record.circuit.pruned:.2%} pruned), of which "
        f"{found.live:,} live: {dead:,} lie on no path from the image to the target"
    )
    if isinstance(record, Category) and record.circuit is not None:
        held, own = record.circuit.heldout, record.unpruned.heldout_biased
        said += (
            f"\nheld out: hits {held.hit:.2f} (unpruned {own.hit:.2f}), false alarms "
            f"{held.false_alarms} ({own.false_alarms})"
        )
    axes.text(0.2, top - 0.32, said, fontsize=9, va="top", color=MUTED, linespacing=1.3)


def _legend(axes: Any, at: Layout, found: Anatomy, seen: Pictures) -> None:
    y = 0.3
    said = "size of a unit, width of a ribbon: score that passes through"
    said += " · in a unit: its activation on the example · beside it: what drives it most"
    if seen.filters:
        said += ", and its filter"
    axes.text(0.2, y, said, fontsize=7.5, color=MUTED, va="center")
    if not found.others:
        return
    right, wide = at.width + 0.1, 1.2
    bar = np.linspace(0, 1, 64)[None]
    axes.imshow(bar, extent=(right - wide - 1.0, right - 1.0, y - 0.06, y + 0.06), cmap=SHARED,
                aspect="auto", zorder=2)  # fmt: skip
    axes.text(right - wide - 1.08, y, "frame: a unit of this circuit alone", ha="right",
              va="center", fontsize=7.5, color=MUTED)  # fmt: skip
    axes.text(right - 0.95, y, f"all {found.others} others", va="center", fontsize=7.5, color=MUTED)
