"""The page of `reproduce`: what was published, what each reading gives, and how far apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from circuitcore.analysis.reproduction.document import Reproduction
from circuitcore.analysis.reproduction.grid import AXES, WHY
from circuitcore.analysis.reproduction.summary import Cell
from circuitcore.machine.files import write_atomically
from circuitcore.report.figure_style import CONV, FC, INK, MARK, MUTED, figure_of
from circuitcore.report.templates import template
from circuitcore.runs.intact import sealed_page

FILE = "reproduction.html"
NEAREST = 20  # readings shown before all of them
TITLES = {
    "paper": "Andrade & Konkle 2025 (CCN), Isolating sparse, category-computing circuits",
    "vss": "the authors' abstract of the same year (VSS 2025)",
}


def write_page(found: Reproduction) -> Path:
    """Write ``reproduction.html`` into the run folder and return its path."""
    path = Path(found.folder) / FILE
    write_atomically(path, sealed_page(page(found).encode("utf-8", "backslashreplace")))
    return path


def page(found: Reproduction) -> str:
    """One self-contained HTML page of the readings."""
    nearest = found.by_distance[:NEAREST]
    return template("reproduction.html.j2").render(
        found=found,
        title=TITLES[found.which],
        axes=AXES,
        why=WHY,
        nearest=nearest if found.preset in nearest else [*nearest, found.preset],
        best=found.by_distance[0],
        one_by_one=one_by_one(found.cells),
        most=max(family.fpe + family.fpe_floor for family in found.families),
        figure=Markup(figure(found)),  # noqa: S704 - matplotlib escapes
    )


def one_by_one(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """By axis the readings that differ from the preset there alone, the preset among them."""
    preset = cells[0].reading
    found: dict[str, list[Cell]] = {}
    for axis in AXES:
        same = [
            cell for cell in cells
            if all(cell.reading[other] == preset[other] for other in AXES if other != axis)
        ]  # fmt: skip
        if len(same) > 1:
            found[axis] = same
    return found


def figure(found: Reproduction) -> str:
    """Every reading: how sparse, and how much of the held-out accuracy is left.

    Beside them the published point, the unpruned network (1) and the empty circuit.
    """
    vss = found.which == "vss"
    with figure_of(9.6, 4.6, "readings") as (drawn, svg):
        axes = drawn.subplots()
        for stop, filled in (("first-crossing", True), ("sparsest-above", False)):
            for bias, colour in (("matched", FC), ("exact", CONV), ("none", FC)):
                mine = [
                    c for c in found.cells
                    if (c.reading["stop"], c.reading["bias"]) == (stop, bias)
                    and c.ratio is not None and c.pruned is not None
                ]  # fmt: skip
                if mine:
                    label = f"{stop}, {bias if bias != 'none' else 'no'} bias"
                    axes.scatter(
                        [_across(c, vss) for c in mine], [c.ratio for c in mine], s=26,
                        edgecolors=colour, facecolors=colour if filled else "none", label=label,
                        linewidths=1.2, zorder=3,
                    )  # fmt: skip
        _levels(axes, found)
        own = found.preset
        if own.ratio is not None and own.pruned is not None:
            axes.scatter([_across(own, vss)], [own.ratio], s=150, facecolors="none",
                         edgecolors=INK, linewidths=1.2, label="the preset", zorder=4)  # fmt: skip
        published = {each["of"]: each["value"] for each in found.published}
        if vss:
            axes.axvline(published["kept_median"], color=MARK, linestyle="--",
                         label="published: median kept")  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel("median kept fraction of the relevant weights")
        else:
            axes.errorbar([published["pruned"]], [published["ratio"]], fmt="X", color=MARK,
                          xerr=[published["pruned_sd"]], markersize=10, capsize=3,
                          label="published, ± s.d. over categories", zorder=5)  # fmt: skip
            axes.set_xlabel("mean pruned fraction of the relevant weights")
        axes.set_ylabel("held-out CSA over the unpruned network's")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
        return str(svg())


def _across(cell: Cell, vss: bool) -> float:
    value: Any = cell.kept_median if vss else cell.pruned
    return float(value)


def _levels(axes: Any, found: Reproduction) -> None:
    """Ceiling and floor: the unpruned network, and the circuit without any weight."""
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.annotate("unpruned network", (0.005, 1), xycoords=("axes fraction", "data"), color=MUTED,
                  xytext=(0, 2), textcoords="offset points", fontsize=8)  # fmt: skip
    own = found.preset
    if own.empty_csa is not None and own.unpruned_csa:
        floor = own.empty_csa / own.unpruned_csa
        axes.axhline(floor, color=MUTED, linewidth=0.8, linestyle=":")
        axes.annotate("empty circuit (the preset's bias)", (0.005, floor),
                      xycoords=("axes fraction", "data"), color=MUTED, xytext=(0, 2),
                      textcoords="offset points", fontsize=8)  # fmt: skip
