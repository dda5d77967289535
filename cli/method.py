"""The verbs of the method: parse, call circuitcore, print."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitcore.cli.giving import export
from circuitcore.cli.options import ALL, ENGINE_ONLY, OUTPUT, RECHOOSE, Given, takes
from circuitcore.cli.options import RunPath as RunPath

if TYPE_CHECKING:
    from circuitcore.api.table import Table
    from circuitcore.extraction.planning.plan import CategoryPlan, Plan

Wanted = Annotated[
    list[str] | None,
    typer.Argument(metavar="CATEGORY", help="names or numbers of output units; none: all"),
]
EVALUATED = ("category", "images", "circuit_csa", "unpruned_csa", "csa_ratio", "csa_ratio_low",
             "csa_ratio_high", "circuit_hit", "circuit_false_alarms")  # fmt: skip


@takes(ALL)
def sweep(wanted: Wanted = None, *, given: Given) -> None:
    """The main job: score, sweep, extract, evaluate. With no argument, on the bundled example.

    Running the same command again goes on where it stopped.
    """
    call = given.call()
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, sweep_text

    with progress(call["quiet"]) as shown:
        run = circuitcore.sweep(categories=wanted or (), progress=shown, **call)
    emit(sweep_text(run.document, call["format"]))


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
        emit(_plan_table(planned))
    else:
        emit(rows_text(_plan_rows(planned), call["format"]))


@takes(ALL)
def score(wanted: Wanted = None, *, given: Given) -> None:
    """The scores of every layer, with --out written there."""
    call = given.call()
    import circuitcore
    from circuitcore.cli.progress import progress

    with progress(call["quiet"]) as shown:
        rows = circuitcore.scores(categories=wanted or (), progress=shown, **call)
    emit_rows(rows, call["format"], left=2)


@takes((*RECHOOSE, "out", *OUTPUT))
def extract(run: RunPath, wanted: Wanted = None, *, given: Given) -> None:
    """Choose the circuits of a run anew, with another threshold.

    The first stage's level comes from the stored curve, the other stages are run again.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, sweep_text

    form, out = given.format, given.flags.get("out")
    if not set(given.flags) & set(RECHOOSE):
        raise circuitcore.UsageError("extract: say what to change, for example --threshold 0.8")
    with progress(given.quiet) as shown:
        opened, changes = circuitcore.open_run(run), given.changes(run)
        found = opened.extract(categories=wanted or (), out=out, progress=shown, **changes)
    emit(sweep_text(found.document, form))


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

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        rows = opened.evaluate(images, progress=shown, **engine)
    of_targets = opened.manifest.get("target")
    if images is not None and form == "table" and not of_targets:
        from circuitcore.cli.tables import emit, transfer_text

        emit(transfer_text(rows.nested))
    else:
        emit_rows(rows, form, columns=() if of_targets else EVALUATED)


@takes(OUTPUT)
def overlap(run: RunPath, *, given: Given) -> None:
    """Overlap of all pairs of circuits, with its chance level.

    Written to overlap.parquet in the run folder, for every layer too.
    """
    import circuitcore
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    opened = circuitcore.open_run(run)
    found = opened.overlap()
    if form == "table":
        whole = sorted((r for r in found if not r["layer"]), key=lambda r: r["overlap"])
        shown = whole if len(whole) <= 50 else [*whole[:10], *whole[-10:]]
        rows = [{k: r[k] for k in ("a", "b", "overlap", "chance")} for r in reversed(shown)]
        emit(rows_text(rows, "table", left=2))
        if len(shown) < len(whole):
            emit(f"the 10 highest and 10 lowest of {len(whole)} pairs; --format csv gives all\n")
        if whole:
            emit(_against_noise(whole, opened.noise_ceiling))
    else:
        emit(rows_text(found, form))


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

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        rows = opened.controls(progress=shown, **engine)
    if form == "table" and not opened.manifest.get("target"):
        from circuitcore.cli.compared import controls_text
        from circuitcore.cli.tables import emit

        emit(controls_text(rows.nested, opened.control_means().nested))
    else:
        emit_rows(rows, form, left=2)


def report(run: RunPath) -> None:
    """One self-contained HTML file; prints its path."""
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    with progress(False) as shown:
        path = circuitcore.open_run(run).report(progress=shown)
    emit(f"{path}\n")


def emit_rows(rows: Table, form: str, left: int = 1, columns: tuple[str, ...] = ()) -> None:
    """Print rows in one of the four formats; ``columns``: of a table alone."""
    from circuitcore.cli.tables import emit, rows_text

    emit(rows_text(rows.nested, form, left=left, columns=columns))


def _plan_rows(planned: Plan) -> list[dict[str, Any]]:
    """A row a layer and level of exact plans, a part where seconds are predicted, else a step."""
    rows = [
        {"category": each.category, "stage": stage.stage, **layer.model_dump()}
        for each in planned.exact
        for stage in each.stages
        for layer in stage.layers
    ]
    if rows:
        return rows
    there = planned.target
    parts = planned.steps if there is None else [*there.category, *there.run]
    return [part.model_dump() for part in parts]


def _plan_table(planned: Plan) -> str:
    from circuitcore.cli.prediction import prediction_text
    from circuitcore.cli.tables import size, table

    rows = [
        [s.what, f"{s.count:,}", f"{s.multiply_adds:.3g}", f"{s.fpe:.2f}", size(s.bytes)]
        for s in planned.steps
    ]
    text = table(["step", "times", "multiply-adds", "FPE", "memory"], rows)
    text += "".join(_exact_table(each) for each in planned.exact)
    seconds = "not probed" if planned.seconds is None else f"about {planned.seconds:.0f} s"
    said = (
        f"{planned.categories} categories of {planned.fpe:.1f} FPE (at most "
        f"{planned.fpe_upper:.1f}), {planned.multiply_adds:.3g} multiply-adds each; "
        f"{planned.shared_fpe:.1f} FPE shared"
    )
    return (
        f"{text}\n{textwrap.fill(said, 80)}\n"
        f"{planned.device}: {size(planned.memory_bytes)} memory, "
        f"{size(planned.disk_bytes)} disk, {seconds}\n"
        f"{'' if planned.target is None else prediction_text(planned.target)}"
    )


def _exact_table(planned: CategoryPlan) -> str:
    """One row a level: what every layer reads and writes, and how."""
    from circuitcore.cli.tables import table

    text = ""
    for stage in planned.stages:
        layers = list(dict.fromkeys(each.layer for each in stage.layers))
        cells = {(e.level, e.layer): f"{e.columns}>{e.rows} {e.path}" for e in stage.layers}
        rows = [
            [str(t), *(cells.get((t, layer), "-") for layer in layers), f"{work:.3g}"]
            for t, work in stage.by_level().items()
        ]
        text += (
            f"\n{planned.category}, {stage.stage} stage, {stage.images} images: inputs > outputs"
        )
        text += f" that are alive\n{table(['level', *layers, 'multiply-adds'], rows)}"
    return f"{text}{planned.category}: {planned.fpe:.3f} FPE exactly, with --screen off\n"


VERBS = (sweep, plan, score, extract, evaluate, overlap, controls, report, export)
