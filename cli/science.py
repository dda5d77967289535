"""The verbs that ask how sure circuits are and what they share: parse, call circuitcore, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitcore.cli.method import RunPath, Wanted
from circuitcore.cli.options import ALL, ENGINE_ONLY, OUTPUT, Given, takes

if TYPE_CHECKING:
    from circuitcore.analysis.across.structure import Structure
    from circuitcore.api.table import Lesions

Measure = Annotated[
    str, typer.Option(metavar="judge|csa", help="faithfulness of the run's judge, or of CSA")
]
CUT = ["lesion", "kind", "cut %", "own", "95 %", "rand.", "rest", "95 %", "rand."]


@takes(ALL)
def stability(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] [CATEGORY]", help="a run folder; output units; none: all"),
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(metavar="N", help="of a RUN: draw scoring images N times [100]")
    ] = None,
    pool: Annotated[
        int, typer.Option(metavar="N", help="training images a category to draw from")
    ] = 32,
    certify: Annotated[
        int | None, typer.Option(metavar="R", help="of the pool's images R may be replaced")
    ] = None,
    *,
    given: Given,
) -> None:
    """Rank correlation of scores from k and from 2k scoring images.

    Of a RUN: its circuits from scoring images drawn again, kept in the run folder. What stays is
    core; two circuits of one category overlap up to the ceiling. Beside it, from the stored curves,
    the same for other thresholds and other extraction images.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit_rows
    from circuitcore.runs.paths import meant

    run, *names = wanted or [""]
    if run and (Path(run) / "manifest.json").exists():
        _resampled(Path(run), names, given, 100 if resamples is None else resamples, pool, certify)
        return
    if resamples is not None or certify is not None:
        raise circuitcore.UsageError(
            f"stability: --resamples and --certify are of a run folder{run and f', not {run!r}'}: "
            "stability RUN --resamples 100"
        )
    call = given.call()
    with progress(call["quiet"]) as shown:
        if "/" in run or Path(run or "-").is_dir():
            circuitcore.open_run(run)  # refused, with the run that may be meant
        try:
            rows = circuitcore.stability(categories=wanted or (), progress=shown, **call)
        except circuitcore.UsageError as error:
            if not str(error).startswith(f"no category {run!r}"):
                raise
            nor = f"{error}; nor is {run!r} a run folder{meant(Path(run))}"
            raise circuitcore.UsageError(nor) from None
    emit_rows(rows, call["format"], left=2)


def _resampled(
    run: Path, wanted: list[str], given: Given, resamples: int, pool: int, certify: int | None
) -> None:
    """`stability RUN`."""
    import circuitcore
    from circuitcore.cli.compared import stability_text
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, emit_rows
    from circuitcore.cli.terminal.verdict import conclude, of_resamples

    if other := sorted(set(given.flags) - {*ENGINE_ONLY, *OUTPUT}):
        flag = other[0].replace("_", "-")
        raise circuitcore.UsageError(f"stability {run}: --{flag} is the run's own, given to sweep")
    with progress(given.quiet) as shown:
        opened = circuitcore.open_run(run)
        rows = opened.stability(
            categories=wanted, resamples=resamples, pool=pool, certify=certify,
            progress=shown, **given.changes(run),
        )  # fmt: skip
    if given.format == "table":
        random = opened.manifest["options"]["criterion"] == "random"
        emit(stability_text(rows, opened.choices(categories=wanted), certify, random))
    else:
        emit_rows(rows, given.format)
    conclude(of_resamples(rows), opened.folder, given.quiet)


@takes((*ENGINE_ONLY, *OUTPUT))
def structure(
    run: RunPath,
    hierarchy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="lines: a name, a tab, its parent  [WordNet's for its ids]"
        ),
    ] = None,
    confusions: Annotated[
        bool, typer.Option("--confusions", help="run the unpruned network for its confusions")
    ] = False,
    *,
    given: Given,
) -> None:
    """What the circuits of a run share, by depth and by unit.

    And with what it goes; beside chance throughout. Layers are compared with the noise ceiling that
    stability RUN finds.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.cli.terminal.verdict import conclude, of_structure

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        found = opened.structure(
            hierarchy=hierarchy, confusions=confusions, progress=shown, **engine
        )
    if form == "json":
        emit(found.model_dump_json(indent=2) + "\n")
    elif form == "table":
        emit(_structure_text(found))
    else:
        rows = [
            {"table": kind, **row.model_dump()}
            for kind in ("shared", "units", "agreement")
            for row in getattr(found, kind)
        ]
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        emit(rows_text([{name: row.get(name) for name in columns} for row in rows], form))
    conclude(of_structure(found), run, given.quiet)


def _structure_text(found: Structure) -> str:
    from circuitcore.cli.tables import number, table

    shared = [
        [row.layer or "all", number(row.mean), number(row.min), number(row.max),
         number(row.chance), number(row.ceiling)]
        for row in found.shared
    ]  # fmt: skip
    units = [
        [row.layer, f"{row.units:,}", f"{row.used:.0%}", f"{row.hubs:,}",
         f"{row.hubs_expected:.1f}", f"{row.hubs_p:.3f}", f"{row.private:,}",
         f"{row.private_expected:.1f}", f"{row.private_p:.3f}"]
        for row in found.units
    ]  # fmt: skip
    text = f"{found.categories} circuits\n\noverlap of two circuits\n"
    text += table(["layer", "mean", "min", "max", "chance", "ceiling"], shared)
    text += "\nunits used by 90 % of the circuits (hubs), by one alone (private)\n"
    text += table(
        ["layer", "units", "used", "hubs", "chance", "p", "private", "chance", "p"], units
    )
    for row in found.agreement:
        text += (
            f"\noverlap above chance against {row.against} ({Path(row.what).name})\n"
            f"rho {row.spearman:.3f}, p {row.p:.3f}; {row.permuted:.3f} with s.d. "
            f"{row.permuted_sd:.3f} where categories are permuted\n"
        )
    if not found.agreement:
        text += (
            "\nnear categories: --hierarchy FILE or --confusions tells whether they share more\n"
        )
    return text


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
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    with progress(given.quiet):
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
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    with progress(given.quiet):
        found = circuitcore.compare(a, b, measure=measure, plot=plot)
    if form == "json":
        emit(found.model_dump_json(indent=2) + "\n")
    elif form == "table":
        emit(comparison_text(found))
    else:
        emit(rows_text([each.model_dump() for each in found.categories], form))


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
    """The network without a circuit, or its private weights.

    Do others survive? Changes of held-out CSA beside those of a random lesion of as many weights of
    each layer. Kept in the run folder. --format csv gives every category under every lesion.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.cli.terminal.verdict import conclude, of_lesions

    form = given.format
    with progress(given.quiet) as shown:
        found = circuitcore.open_run(run).lesion(
            categories=wanted or (), kinds=kind or ("circuit", "private"), shared=shared,
            progress=shown, **given.changes(run),
        )  # fmt: skip
    emit(_lesions(found) if form == "table" else rows_text(found.nested, form))
    conclude(of_lesions(found.summary.nested), run, given.quiet)


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


VERBS = (stability, structure, area, compare, lesion)
