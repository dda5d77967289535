"""`circuitcore reproduce`: parse, call circuitcore, print the nearest readings."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitcore.cli.options import ALL, Given, takes
from circuitcore.options import PRESETS

if TYPE_CHECKING:
    from circuitcore.analysis.reproduction.document import Reproduction
    from circuitcore.analysis.reproduction.summary import Cell

# what the readings vary, and what was not published so
NOT_OFFERED = {
    "threshold", "fc_threshold", "conv_threshold", "magnitude", "false_alarm_norm", "stop",
    "reference", "bias", "preset", "target", "pool_target", "judge", "stages", "workers",
}  # fmt: skip
SHOWN = 12  # readings that a table shows
SHORT = {
    "first-crossing": "first", "sparsest-above": "last", "unpruned-biased": "biased",
    "position": "position", "unpruned": "plain",
}  # fmt: skip


@takes(name for name in ALL if name not in NOT_OFFERED)
def reproduce(
    which: Annotated[str, typer.Argument(metavar="paper|vss", help="the published text")],
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="CATEGORY", help="names or numbers of output units; none: all"),
    ] = None,
    *,
    given: Given,
) -> None:
    """Published figures beside every reading of their text.

    Threshold, reference, stop rule, bias, norm of false alarms, and where scores are absolute: a
    grid of readings that share their sweeps, with the distance of each. On ImageNet where --images
    and --model are, else on the bundled example. Running it again goes on where it stopped.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit, rows_text
    from circuitcore.cli.terminal.verdict import conclude, of_reproduction

    call = given.but(preset=which if which in PRESETS else None).call()
    for name in NOT_OFFERED:
        call.pop(name, None)
    with progress(call["quiet"]) as shown:
        found = circuitcore.reproduce(which, categories=wanted or (), progress=shown, **call)
    form = call["format"]
    if form == "json":
        emit(found.model_dump_json(indent=2) + "\n")
    elif form == "table":
        emit(_text(found))
    else:
        emit(rows_text([_flat(cell) for cell in found.cells], form))
    said = of_reproduction(found)
    conclude(said, found.folder, call["quiet"], report_next=False, page="reproduction.html")


def _flat(cell: Cell) -> dict[str, Any]:
    """One reading as flat columns."""
    from circuitcore.analysis.rows import flat

    row = cell.model_dump()
    shared = row.pop("overlap") or dict.fromkeys(("categories", "mean", "min", "max", "chance"))
    undefined = sum(row.pop("undefined").values())
    reading = row.pop("reading")
    return {**reading, **flat(row), "undefined": undefined, **flat(shared, "overlap_")}


def _text(found: Reproduction) -> str:
    """The nearest readings, the preset's among them, under what was published."""
    from circuitcore.analysis.reproduction.grid import AXES
    from circuitcore.cli.tables import number, plain, table

    lines = [f"{f['what']}: {_shown(f['value'], f['percent'])}" for f in found.published]
    text = "published\n" + "".join(f"  {line}\n" for line in lines)
    rows, every = [], found.by_distance
    chosen = every[:SHOWN]
    if found.preset not in chosen:
        chosen = [*chosen[:-1], found.preset]
    vss = found.which == "vss"
    for cell in chosen:
        near = "NA" if cell.nearest is None else f"{cell.nearest:.0%}"
        own = (
            [_in_percent(v) for v in (cell.kept_median, cell.peak, cell.peak_kept)]
            if vss
            else [f"{_in_percent(cell.pruned)}±{_in_percent(cell.pruned_sd)}", number(cell.ratio)]
        )
        axes = [SHORT.get(str(v), str(v)) for axis in AXES for v in [cell.reading[axis]]]
        mark = "*" if cell.preset else ""
        rows.append([f"{axes[0]}{mark}", *axes[1:], *own, number(cell.distance, 2), near])
    own = ["kept %", "peak %", "at %"] if vss else ["pruned %", "ratio"]
    headings = ["thr.", "score", "norm", "stop", "of", "bias", *own, "dist.", "near"]
    text += "\n" + table(headings, rows, left=6)
    where = "the published categories" if found.on_imagenet else "not ImageNet: another problem"
    said = (
        f"{found.categories} categories of {found.model} on {found.images} ({where})",
        f"{len(found.cells)} readings; * the preset, {_place(found)} by distance. stop: at the "
        "last level before the first one below the threshold, or the last one above it; of: the "
        "unpruned network at bias 0 (plain) or at its own (biased), the range from the empty "
        "circuit (faithful), the peak. dist.: mean relative difference to "
        f"{_compared(found)} figures above; near: how often nearest where categories are drawn "
        "again",
        *([f"of all readings: {_beside(found)}"] if found.beside else []),
        f"{found.fpe:.1f} FPE a category"
        + ("" if found.fpe_alone is None else f"; one by one {found.fpe_alone:.1f}"),
    )
    text += "".join("\n" + textwrap.fill(plain(line), 80) for line in said)
    text += f"\n{plain(str(Path(found.folder) / 'reproduction.html'))}\n"
    preset = found.preset
    if preset.undefined:
        text += f"NA by the preset: {sum(preset.undefined.values())} categories\n"
    return text


def _beside(found: Reproduction) -> str:
    """What all readings have that is not the preset's."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.beside.items())


def _compared(found: Reproduction) -> str:
    """Which of the published figures a distance is of."""
    return f"the first {sum(f['compared'] for f in found.published)}"


def _place(found: Reproduction) -> str:
    """Which one the preset is, nearest first."""
    return f"number {found.by_distance.index(found.preset) + 1}"


def _in_percent(value: float | None) -> str:
    return "NA" if value is None else f"{100 * value:.1f}"


def _shown(value: float | None, percent: bool) -> str:
    if value is None:
        return "NA"
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


VERBS = (reproduce,)
