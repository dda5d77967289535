"""Verbs that ask finished circuits scientific questions: parse, call circuitcore, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from circuitcore.cli.method import RunPath, Wanted
from circuitcore.cli.options import ENGINE_ONLY, OUTPUT, Given, takes

if TYPE_CHECKING:
    from circuitcore.api.table import Lesions

CUT = ["lesion", "kind", "cut %", "own", "95 %", "rand.", "rest", "95 %", "rand."]


@takes((*ENGINE_ONLY, *OUTPUT))
def lesion(
    run: RunPath,
    wanted: Wanted = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="circuit|private", help="what is cut  [both]")
    ] = None,
    shared: Annotated[
        int, typer.Option(metavar="N", help="private: in at most N other circuits of the run")
    ] = 0,
    *,
    given: Given,
) -> None:
    """The network without a circuit, or its private weights: do others survive?

    Changes of held-out CSA beside those of a random lesion of as many weights of each layer. Kept
    in the run folder. --format json or csv gives every category under every lesion.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    with progress(given.quiet) as shown:
        found = circuitcore.open_run(run).lesion(
            categories=wanted or (), kinds=kind or ("circuit", "private"), shared=shared,
            progress=shown, **given.changes(run),
        )  # fmt: skip
    emit(_lesions(found) if form == "table" else rows_text(found.nested, form))


def _lesions(found: Lesions) -> str:
    """One row a lesion: its own category, and the mean of the others."""
    from circuitcore.cli.tables import UNDEFINED, table

    def number(value: float | None) -> str:
        return UNDEFINED if value is None else f"{value:.2f}"

    def interval(ends: tuple[float, float] | None) -> str:
        return UNDEFINED if ends is None else f"{ends[0]:.2f}/{ends[1]:.2f}"

    rows = [
        [
            row["lesion"], row["kind"], number(100 * row["removed"]),
            number(row["own"]), interval(row["own_ci95"]), number(row["own_random"]),
            number(row["others"]), interval(row["others_ci95"]), number(row["others_random"]),
        ]
        for row in found.summary.nested
    ]  # fmt: skip
    harmed = sum(row["harmed"] for row in found.summary.nested)
    counted = sum(row["counted"] for row in found.summary.nested)
    said = (
        "change of held-out CSA; rand.: by the random lesion; rest: mean of the others.\n"
        f"Lose more than by it, 95 % interval below 0: {harmed} of {counted} others; 2.5 % would\n"
        "by chance alone. --format csv has every category under every lesion.\n"
    )
    return table(CUT, rows, left=2) + "\n" + said if rows else "nothing\n"


VERBS = (lesion,)
