"""The verb `profile`: a sweep under a profiler, or a trace that was kept, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitcore.cli.method import Wanted
from circuitcore.cli.options import ALL, Given, takes
from circuitcore.errors import UsageError, nearest

if TYPE_CHECKING:
    from circuitcore.jobs.profiling.document import LevelRow, Profile, StageRow, WorkRow

WIDTH = 80
ROWS = 12  # of layers, and of kernels, in a table; all of them are in the JSON
PROFILERS = ("auto", "torch", "nsys")
FORMATS = ("table", "json")
OUT = "keep the trace: JSON that Perfetto opens (.json, .json.gz), or nsys's report (.nsys-rep)"


def profile(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help=OUT)] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="table|json", show_default=False, help="[table]")
    ] = "table",
    profiler: Annotated[
        str,
        typer.Option(
            "--profiler",
            metavar="auto|torch|nsys",
            show_default=False,
            help="Nsight Systems where it and a GPU are, else torch's own  [auto]",
        ),
    ] = "auto",
    read: Annotated[
        Path | None,
        typer.Option(
            "--read", metavar="FILE", help="a trace kept before (.json, .nsys-rep, .sqlite)"
        ),
    ] = None,
) -> None:
    """Where a sweep's time goes: profile -- sweep [ARGUMENTS].

    Each with its place below the device's roofline, and what plan had said. The sweep goes to a
    temporary folder unless its own --out names one.
    """  # fmt: skip
    _one_of("--format", form, FORMATS)
    _one_of("--profiler", profiler, PROFILERS)
    arguments = list(context.args)
    if read is None:
        _check_out(out, profiler)
        _profiled(arguments, out, profiler, form)
    elif arguments or out is not None:
        raise UsageError("--read shows a trace that is there: no sweep, no --out with it")
    else:
        from circuitcore.cli.tables import emit
        from circuitcore.jobs.profiling.profile import read_profile

        emit(_text(read_profile(read), form))


def _profiled(typed: list[str], out: Path | None, profiler: str, form: str) -> None:
    """Profile a sweep and print where its time went; then end as the sweep did."""
    asked = _sweep_asked(typed)
    if asked is None:  # --help, say
        return
    categories, given, arguments = asked
    options = given.options()
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit
    from circuitcore.jobs.profiling import profile as profiling

    wanted = profiling.Wanted(options, categories, arguments)
    with progress(options.quiet) as shown:
        found = profiling.profiled(wanted, profiler, out, shown)
    emit(_text(found.profile, form))
    if isinstance(found.failed, int):
        raise SystemExit(found.failed)
    if found.failed is not None:
        raise found.failed


profile.passes_on = True  # type: ignore[attr-defined]


def _one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{flag} {value}: one of {', '.join(known)}{nearest(value, known)}")


def _check_out(out: Path | None, profiler: str) -> None:
    """Refuse a file that the trace could not be written to, before anything runs."""
    if out is None:
        return
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    torch, nsys = out.suffix in (".json", ".gz"), out.suffix == ".nsys-rep"
    if not (torch or nsys) or (profiler == "torch" and nsys) or (profiler == "nsys" and torch):
        raise UsageError(f"--out {out}: {OUT}")


@takes(ALL)
def sweep(wanted: Wanted = None, *, given: Given) -> tuple[list[str], Given]:
    """What sweep would do with these arguments."""
    return list(wanted or ()), given


def _sweep_asked(arguments: list[str]) -> tuple[list[str], Given, list[str]] | None:
    """The categories and flags of a sweep's arguments, read as sweep reads them."""
    first = arguments[0] if arguments else ""
    if first == "sweep":
        arguments = arguments[1:]
    elif first in ("plan", "extract", "evaluate", "worker", "score", "controls"):
        raise UsageError(f"profile runs sweep, not {first}: circuitcore profile -- sweep ...")
    app = typer.Typer(add_completion=False)
    app.command(name="sweep", context_settings={"help_option_names": ["-h", "--help"]})(sweep)
    command: Any = typer.main.get_command(app)
    read = command.main(arguments, prog_name="circuitcore sweep", standalone_mode=False)
    return (*read, arguments) if isinstance(read, tuple) else None


def _text(found: Profile, form: str) -> str:
    if form == "json":
        return found.model_dump_json(indent=2, by_alias=True) + "\n"
    return profile_text(found)


def profile_text(found: Profile) -> str:
    """Stages, what runs beside, layers, kernels and the gap to the plan, in 80 columns."""
    import textwrap

    from circuitcore.cli.tables import plain

    parts = [*_head(found), "", *_stages(found)]
    if found.beside:
        rows = [[row.path[-1], f"{row.calls:,}", _seconds(row.seconds)] for row in found.beside]
        parts += ["", *_table(["on other threads, beside", "calls", "s"], rows)]
    parts += ["", *_levels(found.levels)]
    for title, each in (("layer", found.layers), ("kernel", found.kernels)):
        parts += ["", *_works(title, each, found)]
    if found.gaps:
        parts += ["", *_gaps(found)]
    lines = []
    for line in [*parts, *(f"note: {note}" for note in found.notes)]:
        lines += textwrap.wrap(line, WIDTH) if len(line) > WIDTH else [plain(line)]
    return "".join(f"{line}\n" for line in lines)


def _head(found: Profile) -> Iterator[str]:
    yield f"{found.command}, seen by {'torch' if found.profiler == 'torch' else 'Nsight Systems'}"
    if found.peaks is not None:
        rate, moved = found.peaks.multiply_adds / 1e9, found.peaks.bytes / 1e9
        yield (
            f"{found.peaks.device}, {found.peaks.precision}: at most {rate:,.1f} G multiply-adds/s "
            f"and {moved:,.1f} GB/s ({found.peaks.source})"
        )
    yield f"{found.wall_seconds:.3f} s; in no stage: {found.uncovered:.1%} of it"
    if found.device_busy is not None:
        yield f"the GPU ran something {found.device_busy:.1%} of the time"


def _stages(found: Profile) -> Iterator[str]:
    device = found.device_busy is not None
    rows = []
    for row in found.stages:
        rows.append(_stage(row, found.wall_seconds, device))
        inside = any(each.path[:-1] == row.path for each in found.stages)
        if inside and row.own_seconds >= 0.005 * found.wall_seconds:
            name = "  " * len(row.path) + "(by itself)"
            cells = [
                name,
                "",
                _seconds(row.own_seconds),
                f"{row.own_seconds / found.wall_seconds:.1%}",
            ]  # noqa: E501
            rows.append([*cells, *([""] if device else [])])
    yield from _table(["stage", "calls", "s", "share", *(["GPU s"] if device else [])], rows)


def _stage(row: StageRow, wall: float, device: bool) -> list[str]:
    name = "  " * (len(row.path) - 1) + row.path[-1]
    cells = [name, f"{row.calls:,}", _seconds(row.seconds), f"{row.seconds / wall:.1%}"]
    return [*cells, *([_seconds(row.device_seconds or 0.0)] if device else [])]


def _levels(levels: Sequence[LevelRow]) -> Iterator[str]:
    """A line a stage: how many levels, and the one that took longest."""
    for stage in dict.fromkeys(row.stage for row in levels):
        own = [row for row in levels if row.stage == stage]
        longest = max(own, key=lambda row: row.seconds)
        total = sum(row.seconds for row in own)
        yield (
            f"levels of {stage}: {len(own)}, {_seconds(total)} s; "
            f"the longest, {longest.level}: {_seconds(longest.seconds)} s"
        )


def _works(title: str, rows: Sequence[WorkRow], found: Profile) -> Iterator[str]:
    """The longest layers or kernels, and the rest together."""
    shown = [_work(row, found.wall_seconds) for row in rows[:ROWS]]
    if rest := rows[ROWS:]:
        seconds = sum(row.seconds for row in rest)
        calls, share = sum(row.calls for row in rest), seconds / found.wall_seconds
        cells = [f"{len(rest)} more", f"{calls:,}", _seconds(seconds), f"{share:.1%}"]
        shown.append([*cells, "", "", "", ""])
    headings = [title, "calls", "s", "share", "Gmadd/s", "GB/s", "roof", "bound"]
    yield from _table(headings, shown)


def _work(row: WorkRow, wall: float) -> list[str]:
    name = row.name if row.stage is None else f"{row.name} ({row.stage})"
    rates = [
        "" if not rate else f"{rate / 1e9:,.1f}"
        for rate in (row.multiply_adds_per_second, row.bytes_per_second)
    ]
    part = "" if row.roofline is None else f"{row.roofline:.0%}"
    cells = [_cut(name, 24), f"{row.calls:,}", _seconds(row.seconds), f"{row.seconds / wall:.1%}"]
    return [*cells, *rates, part, row.bound or ""]


def _gaps(found: Profile) -> Iterator[str]:
    rows = []
    for gap in found.gaps:
        ratio = f"{gap.measured / gap.predicted:.2f}" if gap.predicted else ""
        said = "" if gap.predicted is None else _seconds(gap.predicted)
        rows.append([gap.part, said, _seconds(gap.measured), ratio])
    yield from _table(["part", "planned s", "took s", "took / planned"], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    from circuitcore.cli.tables import table

    return table(headings, rows).splitlines()


def _cut(name: str, width: int) -> str:
    """A name with its end in the place of what is too long."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}..{name[-(width // 2 - 1) :]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 100 else f"{seconds:.0f}"


VERBS = (profile,)
