"""The verbs about this machine and its runs, from `ls` and `doctor` to those of `cli.cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuitcore.cli.cluster.verbs import VERBS as CLUSTER
from circuitcore.cli.method import RunPath
from circuitcore.cli.options import OUTPUT, Given, takes
from circuitcore.cli.speed import benched, profiled
from circuitcore.errors import InputError, UsageError, nearest

FAILED = 3
LISTED = ("models", "devices", "categories", "runs")  # what `ls` can list
COMPILED = {
    "kernel": "kernel", "config": "configuration", "dtype": "dtype", "registers": "regs",
    "spills": "spills", "shared": "shared", "issue": "issue", "occupancy": "occupancy",
    "matrix_instructions": "matrix instructions",
}  # fmt: skip


@takes(("model", "arch", "images", "categories", "target", "allow_pickle", *OUTPUT))
def ls(
    what: Annotated[str, typer.Argument(metavar="|".join(LISTED), help="what to list")],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the runs are  [runs]")
    ] = None,
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
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.cli.terminal.lists import checked, devices, models

    form = given.format
    rows: list[dict[str, Any]]
    if what not in LISTED:
        raise UsageError(f"ls {what}: one of {', '.join(LISTED)}{nearest(what, LISTED)}")
    if root is not None and not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    if (check or only or write) and not (check and what == "models"):
        raise UsageError("--only and --write go with 'ls models --check'")
    with progress(given.quiet) as shown:
        if check:
            rows = checked(tuple(only or ()), write, shown)
        elif what == "models":
            rows = models(shown)
        elif what == "devices":
            rows = devices()
        elif what == "categories":
            import circuitcore

            rows = [dict(row) for row in circuitcore.categories(**given.call())]
        else:
            from circuitcore.runs.working.watching import list_runs

            rows = list_runs(root)
    emit(rows_text(rows, form, left=3))


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
    from circuitcore.cli.terminal.layout import folded

    form = given.format
    with progress(given.quiet) as shown:
        checks = examine(shown)
    if form == "table":
        lines = (folded(f"{c.state:8} {c.what}: {c.found}", indent=9) for c in checks)
        emit("".join(f"{line}\n" for line in lines))
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

    with progress(given.quiet) as shown:
        opened = circuitcore.open_run(run)
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

    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    form = given.format
    with progress(given.quiet) as shown:
        from circuitcore.errors import DeviceError, UsageError, nearest
        from circuitcore.kernels.compilers import HAS_TRITON

        if not HAS_TRITON:
            raise DeviceError("kernels are compiled by Triton, which is not installed here")
        from circuitcore.kernels.aot.compile import kernel_table, table_row, targets

        if target not in targets():
            near = nearest(target, targets())
            raise UsageError(f"--target {target}: one of {', '.join(targets())}{near}")
        rows = kernel_table(target, shown)
    if form == "json":
        emit(json.dumps({"target": target, "kernels": rows}, indent=2, default=str) + "\n")
        return
    emit(rows_text([table_row(row) for row in rows], form, left=2, columns=COMPILED))


@takes(OUTPUT)
def tune(*, given: Given) -> None:
    """Measure which way each masked layer runs fastest on this GPU.

    Writes the table that later sweeps on this machine follow instead of the cost model. The
    kernels are tested first, as doctor does: one that fails is never chosen.
    """
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text

    with progress(given.quiet) as shown:
        import torch

        from circuitcore.errors import DeviceError
        from circuitcore.kernels.masked.paths import table_path
        from circuitcore.kernels.tune import tune as measured

        if not torch.cuda.is_available():
            raise DeviceError(
                "tune measures a GPU, and there is none here; 'circuitcore ls devices'"
            )
        found = measured(shown=shown)
    rows = [{"layer": key, "path": path} for key, path in found.items()]
    emit(rows_text([*rows, {"layer": "written to", "path": str(table_path())}], given.format))


VERBS = (ls, doctor, verify, kernels, tune, *benched.VERBS, *profiled.VERBS, *CLUSTER)
