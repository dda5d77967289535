"""`worker`, `launch` and `watch`: several processes or machines on one run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from circuitcore.cli.method import RunPath, Wanted
from circuitcore.cli.options import ENGINE_ONLY, OUTPUT, Given, takes


@takes((*ENGINE_ONLY, "quiet"))
def worker(
    run: RunPath,
    wanted: Wanted = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="the I-th of N shards alone, from 0", show_default=False),
    ] = None,
    *,
    given: Given,
) -> None:
    """Join a run: work on its categories, beside others that do.

    Takes what no other worker is at, until all are done; what a worker that died was at, too. Any
    number may join at any time, on any machine that sees the folder.
    """
    index, count = (0, 1) if shard is None else parse_shard(shard)
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    with progress(given.quiet) as shown:
        from circuitcore.jobs.job import worker as work  # takes seconds, which are told
        from circuitcore.jobs.visible import wait_for_run

        wait_for_run(run, shown)
        changes = given.changes(run)
        done = work(run, index, count, shown, wanted or (), others=shard is None, **changes)
    emit(f"{done} categories\n")


@takes(("quiet",))
def launch(
    run: RunPath,
    shards: Annotated[
        int | None, typer.Option(metavar="N", help="jobs, one a GPU  [GPUs here, or 1]", min=1)
    ] = None,
    cluster: Annotated[
        str, typer.Option(metavar="auto|local|slurm", help="where  [auto]", show_default=False)
    ] = "auto",
    timeout: Annotated[
        int, typer.Option(metavar="MINUTES", help="a job's time  [1440]", min=1, show_default=False)
    ] = 1440,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="of SLURM")] = None,
    cpus: Annotated[
        int, typer.Option(metavar="N", help="cores a job  [8]", min=1, show_default=False)
    ] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would be submitted, and stop")
    ] = False,
    *,
    given: Given,
) -> None:
    """Spread a run over GPUs, on this machine or through SLURM.

    Needs submitit: pip install 'circuitcore[cluster]'. The run folder must have been started by
    sweep. A job begins with its own shard and goes on with what is left of others. Running it again
    goes on where it stopped.
    """
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit
    from circuitcore.jobs import launch as launching

    where = launching.Where(cluster=cluster, timeout=timeout, partition=partition, cpus=cpus)
    if dry_run:
        emit(launching.script(run, shards, where))
        return
    with progress(given.quiet) as shown:
        done = launching.launch(run, shards, where, shown)
    emit("".join(f"shard {i}: {n} categories\n" for i, n in enumerate(done)))


def parse_shard(text: str) -> tuple[int, int]:
    """``2/8`` as (2, 8); UsageError where it is not a shard."""
    from circuitcore.errors import UsageError

    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise UsageError(f"--shard {text}: I/N with I from 0 to N-1, for example 0/4")


@takes(OUTPUT)
def watch(
    run: RunPath,
    once: Annotated[bool, typer.Option("--once", help="show it once and stop")] = False,
    every: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="2 on a terminal, else 30", min=0.1),
    ] = None,
    *,
    given: Given,
) -> None:
    """How far is this run, over all its workers?

    From the files in its folder alone, so from any machine. Refreshes on a terminal, else prints a
    line at a time; ends when every category is done or failed, or the last worker has ended.
    """
    from circuitcore.cli.cluster.watching import show
    from circuitcore.cli.progress import progress

    form, terminal = given.format, sys.stdout.isatty()
    with progress(given.quiet):
        import circuitcore.runs.working.watching  # noqa: F401 - takes seconds, which are told
    show(run, form, once=once, every=every or (2.0 if terminal else 30.0), terminal=terminal)


VERBS = (worker, launch, watch)
