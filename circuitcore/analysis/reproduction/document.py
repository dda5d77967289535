"""What `reproduce` found: readings beside published figures, on what, at what cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitcore.analysis.reproduction.grid import OPEN, named
from circuitcore.analysis.reproduction.kept import FamilyRecord
from circuitcore.analysis.reproduction.published import PUBLISHED, Figure
from circuitcore.analysis.reproduction.sharing import shared, sharing
from circuitcore.analysis.reproduction.summary import Cell, summarised, with_nearest
from circuitcore.errors import InputError
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.options import BESIDE, PRESETS, Options, changing
from circuitcore.records import Record
from circuitcore.runs.families import FOLDER
from circuitcore.runs.folder import RunFolder

FILE = "reproduction.json"
WNID = re.compile(r"n\d{8}")
OVERLAPPED = 64  # categories whose circuits are compared pair by pair: 2,016 pairs
Files = Sequence[tuple[Path, FamilyRecord]]


class FamilyCost(Record):
    """Forward-pass equivalents a category of one family: its passes, and its random masks'."""

    magnitude: str
    readings: int
    fpe: float
    fpe_floor: float
    seconds: float


class Reproduction(Record):
    """Readings of ``which`` (``paper``, ``vss``) from the preset's on, in the grid's order.

    ``on_imagenet``: these are the published network's categories; else figures are of another
    problem.  ``beside``: options of all readings that are not the preset's.  ``fpe``: of all
    families a category; ``fpe_alone``: of all readings one by one, None where that is not known;
    ``units``: of the categories, in the order they were asked for.
    """

    which: str
    model: str
    images: str
    on_imagenet: bool
    categories: int
    relevant_weights: int
    beside: dict[str, Any] = {}
    published: list[dict[str, Any]]
    cells: list[Cell]
    families: list[FamilyCost]
    fpe: float
    fpe_alone: float | None
    folder: str
    units: list[int] = []

    @property
    def by_distance(self) -> list[Cell]:
        """Nearest first; those without a distance last."""
        return sorted(
            self.cells, key=lambda cell: float("inf") if cell.distance is None else cell.distance
        )

    @property
    def preset(self) -> Cell:
        """The reading of the preset."""
        return self.cells[0]


def figures_of(which: str, on_imagenet: bool) -> list[Figure]:
    """The published figures; on ImageNet those of accuracy are compared too."""
    return [
        Figure(f.of, f.what, f.value, f.compared or (on_imagenet and "csa" in f.of), f.percent)
        for f in PUBLISHED[which]
    ]


def beside(which: str, options: Options) -> dict[str, Any]:
    """Options of the method, by name, that are not those of the preset ``which``."""
    preset, names = Options(**PRESETS[which]), set(changing("numbers")) - BESIDE
    return {
        name: value for name, value in options.as_json().items()
        if name in names and getattr(options, name) != getattr(preset, name)
    }  # fmt: skip


def reproduction(
    run: RunFolder, which: str, families: Sequence[Sequence[Options]], files: Sequence[Files]
) -> Reproduction:
    """The document of families that are done: ``files`` of each, a category each, in order."""
    folders = [category["folder"] for category in run.manifest["categories"]]
    on_imagenet = len(folders) > 1 and all(WNID.fullmatch(str(folder)) for folder in folders)
    figures = figures_of(which, on_imagenet)
    stages = families[0][0].stage_names()
    last, seed = run.manifest["model"]["last"], families[0][0].seed
    cells, drawn, costs = [], [], []
    for readings, own in zip(families, files, strict=True):
        records = [record for _, record in own]
        once = records[0].once
        layers = sharing(own[:OVERLAPPED], stages, last)
        for place, reading in enumerate(readings):
            rows = [record.readings[place] for record in records]
            both = shared(layers, own[:OVERLAPPED], place)
            preset = reading == families[0][0]
            cell, apart = summarised(named(reading), preset, rows, once, both, figures, seed)
            cells.append(cell)
            drawn.append(apart)
        costs.append(_cost(readings, records))
    return Reproduction(
        which=which,
        model=run.manifest["model"]["name"],
        images=families[0][0].images,
        on_imagenet=on_imagenet,
        categories=len(files[0]),
        relevant_weights=run.manifest["model"]["relevant_weights"],
        beside=beside(which, families[0][0]),
        published=[vars(figure) for figure in figures],
        cells=with_nearest(cells, drawn),
        families=costs,
        fpe=sum(cost.fpe + cost.fpe_floor for cost in costs),
        fpe_alone=_sum([cell.fpe for cell in cells]),
        folder=str(run.folder),
        units=[record.index for _, record in files[0]],
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _cost(readings: Sequence[Options], records: Sequence[FamilyRecord]) -> FamilyCost:
    count = len(records)
    return FamilyCost(
        magnitude=readings[0].magnitude,
        readings=len(readings),
        fpe=sum(r.work / r.once for r in records) / count,
        fpe_floor=sum(r.floor / r.once for r in records) / count,
        seconds=sum(r.seconds for r in records) / count,
    )


def keep(folder: Path, found: Reproduction) -> None:
    """Write it beside the families."""
    text = found.model_dump(mode="json", exclude={"folder"})
    write_atomically(folder / FOLDER / FILE, sealed(text))


def kept(folder: Path) -> Reproduction:
    """What `keep` wrote.  Raises InputError where nothing is there, or it is damaged."""
    path = folder / FOLDER / FILE
    try:
        return Reproduction(**read_sealed(path), folder=str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: no reproduction, or damaged: circuitcore reproduce {'|'.join(OPEN)} "
            f"--out {folder} ({error})"
        ) from None
