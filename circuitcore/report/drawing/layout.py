"""Where a circuit's units stand: layers from left to right, in rows where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from circuitcore.analysis.anatomy.anatomy import Anatomy, AnatomyLayer

COLUMNS = 8  # layers in a row


@dataclass(frozen=True)
class Node:
    """A unit's middle and half its side, in inches from the lower left corner; ``row`` of it."""

    x: float
    y: float
    half: float
    row: int


@dataclass(frozen=True)
class Sizes:
    """Inches: ``left`` before the first layer, ``column`` and ``line`` a unit, ``head`` above a
    row for what is said of its layers; sides of units from ``least`` to ``most``.
    """

    left: float
    column: float
    line: float
    head: float
    least: float
    most: float
    top: float = 0.0
    bottom: float = 0.0


@dataclass(frozen=True)
class Layout:
    """``nodes`` by layer and unit; ``heads``: of each layer the middle above its units; ``rows``:
    the middle of each row of layers.
    """

    width: float
    height: float
    nodes: dict[tuple[str, int], Node]
    heads: dict[str, tuple[float, float]]
    rows: list[float]


def layout(found: Anatomy, sizes: Sizes) -> Layout:
    """Units that carry more are larger; each layer is centred on its row."""
    rows = _rows(found.layers)
    most = max((len(layer.shown) for layer in found.layers), default=1)
    tall = max(most, 1) * sizes.line + sizes.head
    height = sizes.top + tall * len(rows) + sizes.bottom
    nodes, heads, middles = {}, {}, []
    for number, layers in enumerate(rows):
        above = height - sizes.top - number * tall
        middle = above - sizes.head - max(most, 1) * sizes.line / 2
        middles.append(middle)
        for place, layer in enumerate(layers):
            x = sizes.left + (place + 0.5) * sizes.column
            heads[layer.layer] = (x, above)
            largest = max((unit.flow for unit in layer.shown), default=0.0) or 1.0
            for at, unit in enumerate(layer.shown):
                y = middle + ((len(layer.shown) - 1) / 2 - at) * sizes.line
                side = sizes.least + (sizes.most - sizes.least) * (unit.flow / largest) ** 0.5
                nodes[layer.layer, unit.unit] = Node(x, y, side / 2, number)
    width = sizes.left + sizes.column * max((len(layers) for layers in rows), default=1)
    return Layout(width, height, nodes, heads, middles)


def _rows(layers: Sequence[AnatomyLayer]) -> list[list[AnatomyLayer]]:
    """Layers in rows of at most `COLUMNS`, as even as that allows."""
    count = max(-(-len(layers) // COLUMNS), 1)
    each, rest = divmod(len(layers), count)
    rows, start = [], 0
    for number in range(count):
        size = each + (number < rest)
        rows.append(list(layers[start : start + size]))
        start += size
    return rows
