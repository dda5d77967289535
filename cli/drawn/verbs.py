"""`show`: a circuit, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitcore.cli.method import RunPath, Wanted
from circuitcore.cli.options import Given, takes

if TYPE_CHECKING:
    from circuitcore.analysis.anatomy.anatomy import Anatomy


@takes(("format", "quiet"))
def show(
    run: RunPath,
    wanted: Wanted = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE",
                     help=".svg, .png or .pdf, of one category  [RUN/drawings/NNNN-name.svg]",
                     show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", help="units drawn of a layer", min=1)] = 8,
    image: Annotated[
        str | None,
        typer.Option(metavar="N|FILE",
                     help="shown to the circuit: its N-th extraction image, or a file  "
                          "[the strongest hit]", show_default=False),
    ] = None,
    *,
    given: Given,
) -> None:  # fmt: skip
    """A circuit, drawn: units, what connects them, what they see.

    Kept weights that lie on no path from the image to the target are dead: counted, and left out.
    The next report has the drawings too.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    with progress(given.quiet) as shown:
        opened = circuitcore.open_run(run)
        found = opened.show(categories=wanted or (), out=out, top=top, image=image, progress=shown)
    if given.format == "json":
        rows = [each.found.model_dump(mode="json") | {"file": str(each.file)} for each in found]
        emit(rows_text(rows, "json"))
        return
    rows = [row for each in found for row in _rows(each.found)]
    if given.format != "table":
        emit(rows_text(rows, given.format))
        return
    for each in found:
        emit(_text(each.found))
        emit(f"{each.file}\n")


def _rows(found: Anatomy) -> list[dict[str, object]]:
    """A row a layer."""
    return [
        {"category": found.category, **layer.model_dump(exclude={"shown"})}
        for layer in found.layers
    ]


def _text(found: Anatomy) -> str:
    """A table of its layers below a line on the whole."""
    from circuitcore.cli.terminal.layout import folded, plain, table

    rows = [
        [each.layer, f"{each.nominal:,}", f"{each.live:,}", f"{each.nominal - each.live:,}",
         f"{each.units_live:,}", f"{each.units:,}"]
        for each in found.layers
    ]  # fmt: skip
    dead = found.nominal - found.live
    said = (
        f"{plain(found.category)}: {found.nominal:,} weights kept, {found.live:,} live, {dead:,} "
        "on no path from the image to the target"
    )
    return f"{folded(said)}\n" + table(["layer", "kept", "live", "dead", "units live", "of"], rows)


VERBS = (show,)
