"""The verbs that give a circuit away: parse, call circuitcore, print."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitcore.cli.options import ENGINE_ONLY, OUTPUT, Given, RunPath, takes

if TYPE_CHECKING:
    from circuitcore.analysis.giving.export import CompactFile, Exported
    from circuitcore.analysis.giving.sample import Checked

One = Annotated[str, typer.Argument(metavar="CATEGORY", help="name or number")]
EXPORT_OUT = "the file to write  [CATEGORY.safetensors in the run folder]"
COMPACT_OUT = "the file to write  [CATEGORY.pt2 in the run folder]"


@takes((*ENGINE_ONLY, *OUTPUT))
def export(
    run: RunPath,
    category: One,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help=EXPORT_OUT)
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="the compacted circuit as ONNX too")] = False,
    *,
    given: Given,
) -> None:
    """One category's pruned network as a state dict, with a card.

    With masks, for torch.nn.utils.prune. Every file is read back and held against the run's
    activations on its held-out images: all of them, or 256 where there are over 2,000; on the CPU
    unless --device is given. Prints the files' paths.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        found = opened.export(category, out, onnx=onnx, progress=shown, **engine)
        for name, checked in found.checked.items():
            if checked is not None:
                shown.note(f"{name}: {_alike(checked)}")
        shown.note(f"card: {found.card}")
    paths = [*found, *([] if found.onnx is None else [found.onnx])]
    if form == "table":
        emit("".join(f"{path}\n" for path in paths))
    else:
        _emit_other(_exported(found), form)


@takes((*ENGINE_ONLY, *OUTPUT))
def compact(
    run: RunPath,
    category: One,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help=COMPACT_OUT)
    ] = None,
    no_timing: Annotated[
        bool, typer.Option("--no-timing", help="do not measure its speed")
    ] = False,
    *,
    given: Given,
) -> None:
    """One category's circuit as a smaller network for plain torch.

    A dense program for torch.export.load, which takes any number of images of the run's size; read
    back and held against the run as export does. Its speed is measured beside the unpruned
    network's, in up to half a minute, on the CPU unless --device is given.
    """
    import circuitcore
    from circuitcore.cli.progress import progress
    from circuitcore.cli.tables import emit

    form = given.format
    with progress(given.quiet) as shown:
        opened, engine = circuitcore.open_run(run), given.changes(run)
        timed = not no_timing
        found = opened.write_compact(category, out, timed=timed, progress=shown, **engine)
        if found.checked is not None:
            shown.note(f"{found.file.name}: {_alike(found.checked)}")
        shown.note(f"card: {found.card}")
    if form != "table":
        _emit_other(_compacted(found), form)
        return
    emit(f"{found.file}\n")
    if found.speed is not None:
        from circuitcore.analysis.giving.card import speed_text

        emit(f"{speed_text(found.speed.model_dump())}\n")


def _alike(checked: Checked) -> str:
    """How a file stood against the run, in a line."""
    said = f"within {checked.largest_difference:.1e} of the run's activations on {checked.of}"
    if checked.hits is None:
        return said
    return f"{said}, {checked.hits} hits and {checked.false_alarms} false alarms as recorded"


def _exported(found: Exported) -> dict[str, Any]:
    state, masks = found
    checks = {name: each and each.model_dump() for name, each in found.checked.items()}
    return {
        "state": str(state),
        "masks": str(masks),
        "onnx": None if found.onnx is None else str(found.onnx),
        "card": str(found.card),
        "facts": str(found.facts),
        "checked": checks,
    }


def _compacted(found: CompactFile) -> dict[str, Any]:
    told = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {
        name: str(each) if isinstance(each, Path) else each and each.model_dump()
        for name, each in told.items()
    }


def _emit_other(row: dict[str, Any], form: str) -> None:
    import json

    from circuitcore.cli.tables import emit, rows_text

    emit(json.dumps(row, indent=2) + "\n" if form == "json" else rows_text([row], form))


VERBS = (compact,)  # `export` stands among those of the method
