"""The verb `bench`: the suite through pytest, and two runs of it held against each other."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitcore.errors import InputError, UsageError

if TYPE_CHECKING:
    from circuitcore.jobs.profiling.benchmarks import Row
    from circuitcore.jobs.profiling.comparing import Comparison

WIDTH = 80
FAILED = 3
BASELINES = Path("bench", "baselines")
FILES = "JSON of pytest-benchmark, or a baseline's name; B alone: against its device's baseline"


def bench(context: typer.Context) -> None:
    """The benchmark suite (pytest's arguments), or compare [A] B.

    Needs the source tree. compare --help says how two runs are held against each other.
    """
    if context.args[:1] == ["compare"]:
        app = typer.Typer(add_completion=False)
        app.command(name="compare", context_settings={"help_option_names": ["-h", "--help"]})(
            compare
        )
        command: Any = typer.main.get_command(app)
        name = "circuitcore bench compare"
        command.main(context.args[1:], prog_name=name, standalone_mode=False)
        return
    root = _root()
    if root is None:
        raise InputError(
            "the benchmarks are not part of the installed package: clone the source, "
            "then pip install -e '.[bench]' and run circuitcore bench there"
        )
    command = [sys.executable, "-P", "-m", "pytest", "bench", "-m", "bench", *context.args]
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code:
        raise InputError(f"pytest ended with {code}: see its lines above")


bench.passes_on = True  # type: ignore[attr-defined]


def _root() -> Path | None:
    """The source tree, where this is run from one."""
    import circuitcore

    root = Path(circuitcore.__file__).resolve().parent.parent
    return root if (root / "bench").is_dir() and (root / "pyproject.toml").is_file() else None


def _baselines() -> Path | None:
    """Where baselines are: in the source tree, or in one that the installed command is run in."""
    for root in (_root(), Path.cwd()):
        if root is not None and (root / BASELINES).is_dir():
            return root / BASELINES
    return None


def compare(
    files: Annotated[list[str], typer.Argument(metavar="[A] B", help=FILES)],
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="FACTOR",
            show_default=False,
            help="exit 3 where a row is slower by more than this, beyond its noise",
        ),
    ] = None,
    within: Annotated[
        float, typer.Option("--within", metavar="FACTOR", help="up to this two times are the same")
    ] = 1.1,
    if_kept: Annotated[
        bool, typer.Option("--if-kept", help="a device without a baseline is no error")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="table|json", show_default=False, help="[table]")
    ] = "table",
) -> None:
    """How much faster or slower run B is than run A, by medians, with the noise of their rounds.

    Seconds are compared on the same device only; between devices the ratios to contenders that
    both ran beside.
    """  # fmt: skip
    if form not in ("table", "json"):
        raise UsageError(f"--format {form}: one of table, json")
    if fail_over is not None and not fail_over > 1:
        raise UsageError(f"--fail-over {fail_over}: a factor of more than 1, such as 1.2")
    from circuitcore.cli.tables import emit
    from circuitcore.jobs.profiling.comparing import compared

    pair = _rows(files, if_kept)
    if pair is None:
        return
    found = compared(*pair, within=within)
    emit(found.model_dump_json(indent=2) + "\n" if form == "json" else comparison_text(found))
    if not found.rows and not found.differing:
        raise InputError(f"{' '.join(files)}: no benchmark in both runs")
    if fail_over is not None and (slow := found.slower(fail_over)):
        names = ", ".join(f"{row.name} {row.ratio:.2f} x" for row in slow)
        typer.echo(f"slower than {fail_over} x: {names}", err=True)
        raise SystemExit(FAILED)


def _rows(files: list[str], if_kept: bool) -> tuple[list[Row], list[Row]] | None:
    """The rows of both runs; None where there is no baseline and need not be."""
    from circuitcore.jobs.profiling.benchmarks import baseline_name, read_rows

    if len(files) > 2:
        raise UsageError(f"bench compare takes two runs, not {len(files)}: {FILES}")
    b = read_rows(_file(files[-1]))
    if len(files) == 2:
        return read_rows(_file(files[0])), b
    if not b:
        raise InputError(f"{files[-1]}: no benchmark in it")
    name, folder = baseline_name(b[0].device), _baselines()
    kept = None if folder is None else folder / name
    if kept is not None and kept.is_file():
        return read_rows(kept), b
    said = f"no baseline of {b[0].device}: keep this run as {BASELINES / name}"
    if not if_kept:
        raise InputError(said)
    typer.echo(said, err=True)
    return None


def _file(given: str) -> Path:
    """A file as given, or a baseline by its name."""
    path, folder = Path(given), _baselines()
    if path.is_file() or folder is None:
        return path
    kept = folder / f"{given.removesuffix('.json')}.json"
    if kept.is_file():
        return kept
    names = ", ".join(sorted(each.stem for each in folder.glob("*.json")))
    raise InputError(f"{given}: no such file, and no baseline of that name (there is: {names})")


def comparison_text(found: Comparison) -> str:
    """A line a row, then what is not compared and why, in 80 columns."""
    from circuitcore.cli.tables import table
    from circuitcore.jobs.profiling.comparing import SECONDS, counts

    lines = [
        f"{which}: {', '.join([device, *commits])}"
        for which, device, commits in (
            ("A", found.device_a, found.commits_a),
            ("B", found.device_b, found.commits_b),
        )
    ]
    if found.device_a != found.device_b:
        lines.append("other devices: what is compared is a row's seconds over a contender's")
    rows = []
    for row in found.rows:
        own = row.name.removeprefix("test_").replace("_", " ")
        own = own if row.by == SECONDS else f"{own} / {row.by}"
        noise = "unknown" if row.low is None else f"{row.low:.2f}-{row.high:.2f}"
        beside = "" if row.beside is None else f"{row.beside:.2f}"
        cells = [_short(own, 29), f"{row.a:.3g}", f"{row.b:.3g}", f"{row.ratio:.2f}"]
        rows.append([*cells, noise, beside, row.verdict])
    headings = ["benchmark", "A", "B", "B / A", "95 %", "beside", "B is"]
    lines += ["", *table(headings, rows).splitlines()] * bool(rows)
    lines += ["", ", ".join(f"{count} {said}" for said, count in counts(found).items())]
    lines += [f"not compared, {name}: {why}" for name, why in found.differing.items()]
    for which, names in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"in {which} only: {', '.join(names)}"] * bool(names)
    return "".join(f"{each}\n" for line in lines for each in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH) if len(line) > WIDTH else [line]


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 2]}.."


VERBS = (bench,)
