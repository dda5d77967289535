"""The verbs of the method: parse, call circuitcore, print."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from circuitcore.cli.giving import export
from circuitcore.cli.options import ALL, ENGINE_ONLY, OUTPUT, RECHOOSE, Given, takes
from circuitcore.cli.options import RunPath as RunPath

Wanted = Annotated[
    list[str] | None,
    typer.Argument(metavar="CATEGORY", help="names or numbers of output units; none: all"),
]
EVALUATED = {
    "category": "category", "images": "images", "circuit_csa": "CSA", "unpruned_csa": "unpruned",
    "csa_ratio": "ratio", "csa_ratio_low": "from", "csa_ratio_high": "to", "circuit_hit": "hit",
    "circuit_false_alarms": "alarms",
}  # fmt: skip
SCORED = {
    "category": "category", "layer": "layer", "relevant_weights": "weights", "zero": "zero",
    "min": "min", "max": "max", "mean": "mean",
}  # fmt: skip


@takes(ALL)
def sweep(wanted: Wanted = None, *, given: Given) -> None:
    """The main job: score, sweep, extract, evaluate. With no argument, on the bundled example.

    Running the same command again goes on where it stopped.
    """
    call = given.call()
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit_sweep
    from circuitcore.cli.terminal.verdict import conclude, of_sweep

    with progress(call["quiet"]) as shown:
        run = circuitcore.sweep(categories=wanted or (), progress=shown, **call)
    emit_sweep(run, call["format"])
    if not call["quiet"]:
        document = run.document
        conclude(of_sweep(document), document.run["folder"], False, report_next=False)


@takes(name for name in ALL if name != "target")
def plan(
    wanted: Wanted = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="no timing of a few seconds", rich_help_panel="Plan")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="score the categories: every level's exact plan", rich_help_panel="Plan"
        ),
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="seconds on a100, h100, h200, l40s or rtx4090, from counts; none need be here. "
            "With a colon, LAYER:UNIT: a target of the sweep",
            rich_help_panel="Plan",
        ),
    ] = None,
    *,
    given: Given,
) -> None:
    """What a sweep with these arguments will cost. Changes nothing."""
    devices = [name for name in target or () if ":" not in name]
    targets = [name for name in target or () if ":" in name]
    call = given.but(target=targets).call()
    targets = [*call.pop("target", ()), *devices]
    import circuitcore
    from circuitcore.cli.prediction import plan_rows, plan_table
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    with progress(call["quiet"]) as shown:
        planned = circuitcore.plan(
            categories=wanted or (), probe=not no_probe, exact=exact, target=targets,
            progress=shown, **call,
        )  # fmt: skip
    if call["format"] == "json":
        emit(planned.model_dump_json(indent=2) + "\n")
    elif call["format"] == "table":
        emit(plan_table(planned))
    else:
        emit(rows_text(plan_rows(planned), call["format"]))


@takes(ALL)
def score(wanted: Wanted = None, *, given: Given) -> None:
    """The scores of every layer, with --out written there."""
    call = given.call()
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit_rows

    with progress(call["quiet"]) as shown:
        rows = circuitcore.scores(categories=wanted or (), progress=shown, **call)
    emit_rows(rows, call["format"], left=2, columns={} if call["out"] else SCORED)


@takes((*RECHOOSE, "out", *OUTPUT))
def extract(run: RunPath, wanted: Wanted = None, *, given: Given) -> None:
    """Choose the circuits of a run anew, with another threshold.

    The first stage's level comes from the stored curve, the other stages are run again.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit_sweep
    from circuitcore.cli.terminal.verdict import conclude, of_sweep

    form, out = given.format, given.flags.get("out")
    if not set(given.flags) & set(RECHOOSE):
        raise circuitcore.UsageError("extract: say what to change, for example --threshold 0.8")
    with progress(given.quiet) as shown:
        opened, changes = circuitcore.open_run(run), given.changes(run)
        found = opened.extract(categories=wanted or (), out=out, progress=shown, **changes)
    emit_sweep(found, form)
    if not given.quiet:
        conclude(of_sweep(found.document), found.folder, False, report_next=False)


@takes((*ENGINE_ONLY, *OUTPUT))
def evaluate(
    run: RunPath,
    images: Annotated[
        str | None, typer.Option(metavar="WHERE", help="other images  [the run's held-out set]")
    ] = None,
    *,
    given: Given,
) -> None:
    """Judge the circuits of a run, on other images if need be.

    Beside the unpruned network, a random mask of the same densities and the empty circuit: with
    biases frozen since the sweep and, on other images, refitted there. Rows of other images are
    kept in the run folder.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, emit_rows, transfer_text
    from circuitcore.cli.terminal.verdict import conclude, of_accuracies

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        rows = opened.evaluate(images, progress=shown, **engine)
    of_targets = opened.manifest.get("target")
    if images is not None and form == "table" and not of_targets:
        emit(transfer_text(rows.nested))
    else:
        emit_rows(rows, form, columns={} if of_targets else EVALUATED)
    if not of_targets:
        said = of_accuracies(rows.nested, len(opened))
        conclude(said, opened.folder, given.quiet, report_next=images is not None)


@takes(OUTPUT)
def overlap(run: RunPath, *, given: Given) -> None:
    """Overlap of all pairs of circuits, with its chance level.

    Written to overlap.parquet in the run folder, for every layer too.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, emit_rows, rows_text

    form = given.format
    with progress(given.quiet) as shown:
        opened = circuitcore.open_run(run)
        found = opened.overlap(progress=shown)
    if form == "table":
        whole = sorted(found.of_layer(), key=lambda r: r["overlap"])
        some = whole if len(whole) <= 50 else [*whole[:10], *whole[-10:]]
        rows = [{k: r[k] for k in ("a", "b", "overlap", "chance")} for r in reversed(some)]
        emit(rows_text(rows, "table", left=2))
        if len(some) < len(whole):
            emit(f"the 10 highest and 10 lowest of {len(whole)} pairs; --format csv gives all\n")
        if whole:
            emit(_against_noise(whole, opened.noise_ceiling))
    else:
        emit_rows(found, form)


def _against_noise(whole: list[Any], ceiling: float | None) -> str:
    """Mean overlap beside what two circuits of one category share, or how to find that out."""
    mean = sum(row["overlap"] for row in whole) / len(whole)
    if ceiling is None:
        return "how much two circuits of one category overlap: circuitcore stability RUN\n"
    return (
        f"mean {mean:.3f}; two circuits of one category from other scoring images: {ceiling:.3f} "
        f"(the\nnoise ceiling), of which it is {mean / ceiling:.0%}\n"
    )


@takes((*ENGINE_ONLY, *OUTPUT))
def controls(run: RunPath, *, given: Given) -> None:
    """Control circuits beside every circuit of a run.

    Random masks of the same density per layer, masks by weight, another category's circuit, and
    the complement. Kept in the run folder, for its report.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, emit_rows
    from circuitcore.cli.terminal.verdict import conclude, of_controls

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        rows = opened.controls(progress=shown, **engine)
        means = opened.control_means()
    of_targets = opened.manifest.get("target")
    if form == "table" and not of_targets:
        from circuitcore.cli.compared import controls_text

        emit(controls_text(rows.nested, means.nested))
    else:
        emit_rows(rows, form, left=2)
    if not of_targets:
        conclude(of_controls(means.nested), opened.folder, given.quiet)


def report(
    run: RunPath,
    pages: Annotated[
        bool, typer.Option("--pages", help="a folder of pages too, one a category")
    ] = False,
) -> None:
    """One self-contained HTML file; prints its path."""
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    with progress(False) as shown:
        path = circuitcore.open_run(run).report(pages=pages, progress=shown)
    emit(f"{path}\n")


VERBS = (sweep, plan, score, extract, evaluate, overlap, controls, report, export)
