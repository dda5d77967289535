"""The verbs about this machine and its runs, from `ls` and `doctor` to those of `cli.cluster`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from circuitcore.cli.cluster.verbs import VERBS as CLUSTER
from circuitcore.cli.method import RunPath
from circuitcore.cli.options import OUTPUT, Given, takes
from circuitcore.cli.speed import benched, profiled
from circuitcore.errors import UsageError

FAILED = 3


class Listed(StrEnum):
    """What `ls` can list."""

    models = "models"
    devices = "devices"
    categories = "categories"
    runs = "runs"


@takes(("model", "arch", "images", "categories", "target", "allow_pickle", *OUTPUT))
def ls(
    what: Annotated[Listed, typer.Argument(help="what to list")],
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="where the runs are  [runs]", show_default=False)
    ] = Path("runs"),
    check: Annotated[
        bool, typer.Option("--check", help="models: build and run each, small, with random weights")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="with --check: these alone, such as 'tv:resnet*'"),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="with --check: keep the table, and docs/models.md")
    ] = False,
    *,
    given: Given,
) -> None:
    """List the models, devices, categories or runs there are.

    Of models those that can be swept are listed; --check finds out which, and why others cannot.
    """
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    rows: list[dict[str, Any]]
    if (check or only or write) and not (check and what is Listed.models):
        raise UsageError("--only and --write go with 'ls models --check'")
    if check:
        rows = _checked(tuple(only or ()), write, given)
    elif what is Listed.models:
        rows = _known_models(given)
    elif what is Listed.devices:
        from dataclasses import asdict

        from circuitcore.machine.device import list_devices

        rows = [asdict(d) for d in list_devices()]
    elif what is Listed.categories:
        import circuitcore

        rows = [dict(row) for row in circuitcore.categories(**given.call())]
    else:
        from circuitcore.runs.watching import list_runs

        rows = list_runs(root)
    emit(rows_text(rows, form, left=3))


def _known_models(given: Given) -> list[dict[str, Any]]:
    """Models that can be swept, with the names of their weights; a line on stderr on the others."""
    import torchvision.models as tv

    from circuitcore.cli.progress import progress
    from circuitcore.inputs.libraries.census import table

    rows = [{"model": "bundled", "weights": "with circuitcore"}]
    refused = []
    for found in table():
        library, _, name = found.model.partition(":")
        if not found.works:
            refused.append(found.model)
        elif library == "tv":
            listed = ", ".join(w.name for w in tv.get_model_weights(name))
            rows.append({"model": found.model, "weights": listed})
        else:
            rows.append({"model": found.model, "weights": "timm's"})
    if refused:
        with progress(given.quiet) as shown:
            shown.note(
                f"{len(refused)} networks that were tried cannot be swept ({refused[0]}, ...); why "
                "says docs/models.md, or 'circuitcore ls models --check --only NAME'"
            )
    return rows


def _checked(only: tuple[str, ...], write: bool, given: Given) -> list[dict[str, Any]]:
    """The table of what works, made anew."""
    from dataclasses import asdict

    from circuitcore.cli.progress import progress
    from circuitcore.inputs.libraries.census import census, write_tables
    from circuitcore.machine.state import undisturbed

    with undisturbed(), progress(given.quiet) as shown:
        found = census(only, shown)
    if not found:
        raise UsageError(f"--only {' '.join(only)}: no such network; 'circuitcore ls models'")
    if write:
        write_tables(found, whole=not only)
    return [asdict(each) for each in found]


@takes(OUTPUT)
def doctor(*, given: Given) -> None:
    """Is this machine fit?

    Lines of ok, warning and failed; exit 5 if something is unusable. On a GPU every Triton kernel
    is run against plain torch, and what fails is not used from then on.
    """
    from dataclasses import asdict

    from circuitcore.cli.doctor import examine
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    with progress(given.quiet) as shown:
        checks = examine(shown)
    if form == "table":
        emit("".join(f"{c.state:8} {c.what}: {c.found}\n" for c in checks))
    else:
        emit(rows_text([asdict(c) for c in checks], form))
    if any(c.state == "failed" for c in checks):
        raise SystemExit(5)


@takes(("quiet",))
def verify(
    run: RunPath,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Set aside what is damaged, make anew what is derived from circuits."
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Circuits whose held-out accuracy is computed again."
        ),
    ] = 1,
    *,
    given: Given,
) -> None:
    """Is this run intact?

    Holds every file against its hash, tables against circuits, circuits against their records, and
    computes some accuracies again where model and images can be had. Lists what is wrong; exit 3 if
    anything is.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    opened = circuitcore.open_run(run)
    with progress(given.quiet) as shown:
        problems = opened.verify(sample=sample, repair=repair, progress=shown)
    if problems:
        emit("".join(f"{p}\n" for p in problems))
        raise SystemExit(FAILED)
    emit(f"intact: {len(opened)} circuits\n")


@takes(OUTPUT)
def kernels(
    target: Annotated[
        str,
        typer.Option(
            metavar="ARCH", help="sm_80, sm_90, sm_100 or gfx942  [sm_90]", show_default=False
        ),
    ] = "sm_90",
    *,
    given: Given,
) -> None:
    """Compile every kernel for a GPU that need not be here.

    Tables registers, spills, shared memory and matrix instructions.
    """
    import json

    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.errors import DeviceError, UsageError, nearest
    from circuitcore.kernels.compilers import HAS_TRITON

    if not HAS_TRITON:
        raise DeviceError("kernels are compiled by Triton, which is not installed here")
    from circuitcore.kernels.aot.compile import kernel_table, table_row, targets

    if target not in targets():
        near = nearest(target, targets())
        raise UsageError(f"--target {target}: one of {', '.join(targets())}{near}")
    form, rows = given.format, kernel_table(target)
    if form == "json":
        emit(json.dumps({"target": target, "kernels": rows}, indent=2, default=str) + "\n")
        return
    emit(rows_text([table_row(row) for row in rows], form, left=3))


@takes(OUTPUT)
def tune(*, given: Given) -> None:
    """Measure on this GPU which way each masked layer runs fastest, and remember it.

    Writes the table that later sweeps on this machine follow instead of the cost model. The
    kernels are tested first, as doctor does: one that fails is never chosen.
    """
    import torch

    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.errors import DeviceError
    from circuitcore.kernels.masked.paths import table_path
    from circuitcore.kernels.tune import tune as measured

    if not torch.cuda.is_available():
        raise DeviceError("tune measures a GPU, and there is none here; 'circuitcore ls devices'")
    with progress(given.quiet) as shown:
        found = measured(shown=shown)
    rows = [{"layer": key, "path": path} for key, path in found.items()]
    emit(rows_text([*rows, {"layer": "written to", "path": str(table_path())}], given.format))


VERBS = (ls, doctor, verify, kernels, tune, *benched.VERBS, *profiled.VERBS, *CLUSTER)
