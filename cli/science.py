"""More verbs asked of finished runs: parse, call circuitcore, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuitcore.cli.method import RunPath
from circuitcore.cli.options import OUTPUT, Given, takes

Measure = Annotated[
    str, typer.Option(metavar="judge|csa", help="faithfulness of the run's judge, or of CSA")
]


@takes(OUTPUT)
def area(
    run: RunPath,
    control: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="a sweep with --criterion random, say  [empty circuit]"),
    ] = None,
    measure: Measure = "judge",
    *,
    given: Given,
) -> None:
    """CPR and CMD: area under the faithfulness curve, and to 1.

    Over kept fractions 0.001 to 1, from the stored curves. NA where levels were not run; the area
    over those that were stands beside.
    """
    import circuitcore
    from circuitcore.cli.compared import area_text
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    rows = circuitcore.open_run(run).area(control=control, measure=measure)
    emit(area_text(rows) if form == "table" else rows_text(rows.nested, form))


@takes(OUTPUT)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="a run folder")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another")],
    measure: Measure = "judge",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="both runs' mean curves, to write")
    ] = None,
    *,
    given: Given,
) -> None:
    """Two runs beside each other: options, circuits, areas; B less A.

    Networks, seeds and scores may differ; categories are matched by name.
    """
    import circuitcore
    from circuitcore.cli.compared import comparison_text
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    found = circuitcore.compare(a, b, measure=measure, plot=plot)
    if form == "json":
        emit(found.model_dump_json(indent=2) + "\n")
    elif form == "table":
        emit(comparison_text(found))
    else:
        emit(rows_text([each.model_dump() for each in found.categories], form))


VERBS = (area, compare)
