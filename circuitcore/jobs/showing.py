"""Draw circuits of a run: their anatomy is kept beside them, the picture is a file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuitcore.analysis.across.usage import Usage, usage
from circuitcore.analysis.anatomy.anatomy import MOST_UNITS, Anatomy, anatomy, keep
from circuitcore.analysis.anatomy.exemplars import exemplars
from circuitcore.analysis.evaluation import inputs_of
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.read import InHand, Inputs
from circuitcore.machine.files import write_atomically
from circuitcore.progress import Progress
from circuitcore.records import Category, Found
from circuitcore.runs.export import check_out, told_where
from circuitcore.runs.folder import RunFolder, open_run
from circuitcore.runs.images.exemplarfile import Exemplars, read_exemplars, write_exemplars
from circuitcore.runs.paths import file_stem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("svg", "png", "pdf")
DRAWINGS = "drawings"
DPI = 150
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shown:
    """A circuit that was drawn: what is in it, and the file of its picture."""

    found: Anatomy
    file: Path


@dataclass(frozen=True)
class Opened:
    """What all circuits that are drawn share."""

    run: RunFolder
    inputs: Inputs
    others: Usage
    best: Exemplars


def show(
    folder: Path, wanted: Sequence[str | int], progress: Progress, given: InHand | None = None, *,
    out: Path | None = None, top: int = MOST_UNITS, image: str | None = None,
) -> list[Shown]:  # fmt: skip
    """Draw the circuits of the wanted categories, or of all that have one.

    ``out``: the file of one, SVG, PNG or PDF by its ending, else ``RUN/drawings/NNNN-name.svg``;
    ``top``: units drawn of a layer; ``image``: as `pictures.example` takes it.  Cost: one pass over
    the extraction images, once a run; of each category scoring, and two passes over its own
    extraction images.  Raises UsageError for another ending or category, InputError where there is
    no circuit, or model or images are not those of the run.
    """
    run = open_run(folder)
    units = _units(run, wanted)
    files = {unit: _place(run, unit, out, len(units)) for unit in units}
    opened = opened_run(folder, progress, given)
    progress.start("drawings", len(units))
    shown = []
    for unit in units:
        found, record, figure = drawing(opened, unit, top=top, image=image)
        keep(opened.run, found)
        _write(figure, files[unit])
        shown.append(Shown(found, files[unit]))
        progress.advance(1, record.category)
    return shown


def opened_run(folder: Path, progress: Progress, given: InHand | None = None) -> Opened:
    """A run with its network and images, and what drives its units, found once and kept."""
    run, inputs, _ = inputs_of(folder, given)
    inputs.tell(progress)
    best = read_exemplars(run)
    if best is None:
        best = exemplars(inputs.model.network, inputs, CPU, progress)
        write_exemplars(run, best)
    return Opened(run, inputs, usage(run, _units(run, ()), progress), best)


def drawing(
    opened: Opened, unit: int, *, top: int = MOST_UNITS, image: str | None = None
) -> tuple[Anatomy, Found, Figure]:
    """The anatomy of a circuit, its record and its picture."""
    from circuitcore.analysis.anatomy.pictures import pictures
    from circuitcore.report.drawing.large import draw  # matplotlib takes a second to import

    run, inputs = opened.run, opened.inputs
    stored = run.circuit(unit)
    found = anatomy(run, stored, inputs, opened.others, top)
    record, bias = stored.record, 0.0
    if isinstance(record, Category) and record.circuit is not None:
        bias = record.circuit.bias
    seen = pictures(found, stored.kept, bias, inputs, opened.best, image)
    return found, record, draw(found, record, seen)


def _units(run: RunFolder, wanted: Sequence[str | int]) -> list[int]:
    """Units of the wanted categories, or of those that have a circuit."""
    if wanted:
        return list(dict.fromkeys(run.unit_of(each) for each in wanted))
    found = [record.index for record in run.each_record() if record.circuit is not None]
    if not found:
        raise InputError(f"{run.folder}: no category has a circuit yet")
    return found


def _place(run: RunFolder, unit: int, out: Path | None, count: int) -> Path:
    if out is None:
        name = next(c["name"] for c in run.manifest["categories"] if c["index"] == unit)
        return run.folder / DRAWINGS / f"{file_stem(unit, name)}.svg"
    if count > 1:
        raise UsageError(f"--out {out}: one file, for one category; {count} are asked for")
    check_out(run, out, "circuit.svg")
    if out.suffix.lower().removeprefix(".") not in FORMS:
        raise UsageError(f"--out {out}: the ending says the format: {', '.join(FORMS)}")
    return out


def _write(figure: Figure, file: Path) -> None:
    """As its ending says; the same figure gives the same bytes."""
    import io

    import matplotlib

    form = file.suffix.lower().removeprefix(".")
    metadata: dict[str, Any] = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }[form]
    content = io.BytesIO()
    style: dict[Any, Any] = {"svg.hashsalt": "circuitcore", "svg.fonttype": "none"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not: in SVG they are text
        figure.savefig(content, format=form, dpi=DPI, metadata=metadata)
    with told_where():
        write_atomically(file, content.getvalue())
