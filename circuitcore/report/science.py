"""What was asked of a run's circuits since they were found, as its report shows it.

Each section is there where its result is: kept in the run folder by the verb that made it, or made
here from the stored curves and overlaps, where that runs no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from circuitcore.analysis.across.structure import (
    SharedRow,
    Structure,
    kept_structure,
    shared_by_layer,
)
from circuitcore.analysis.area import MEAN, AreaRow, areas
from circuitcore.analysis.evaluation import EvaluateRow, kept_transfers
from circuitcore.analysis.lesions import kept_changes
from circuitcore.analysis.resampling import kept as kept_resamples
from circuitcore.analysis.resampling.choice import STEP, choices
from circuitcore.analysis.resampling.kept import WHOLE, mean_ceilings
from circuitcore.analysis.statistics import bootstrap
from circuitcore.analysis.summary import mean
from circuitcore.records import Category, Sweep, TargetSweep
from circuitcore.report import figures_science
from circuitcore.runs.folder import RunFolder

RESAMPLED = ("core", "contingent", "never", "ceiling", "chance", "overlap", "certified",
             "circuit_certified", "each_certified")  # fmt: skip
CHOSEN = ("threshold_ceiling", "extraction_ceiling", "moved")

Row = dict[str, Any]


@dataclass(frozen=True)
class Science:
    """Rows and figures of the sections; what is empty is not shown.

    ``ceiling``: mean overlap of two circuits of one category; ``drawing``: how scoring images were
    drawn again, ``layers`` means over circuits then, ``chosen`` means over circuits of
    `choice.ChoiceRow`, ``each`` both by circuit.
    """

    ceiling: float | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)
    layers: Sequence[Row] = ()
    chosen: Sequence[Row] = ()
    each: Sequence[Row] = ()
    step: float = STEP
    shared: Sequence[SharedRow] = ()
    structure: Structure | None = None
    areas: Sequence[AreaRow] = ()
    lesions: Mapping[str, Row] = field(default_factory=dict)
    transfers: Sequence[Row] = ()
    figures: Mapping[str, str] = field(default_factory=lambda: {"depth": "", "lesioned": ""})


def science_of(run: RunFolder, document: Sweep | TargetSweep, pairs: pa.Table) -> Science:
    """Everything that lies in a run folder of these circuits; ``pairs``: their `overlap.table`."""
    options, folder = run.options(), run.folder
    records = document.categories if isinstance(document, Sweep) else document.targets
    stems = {path.stem for path in run.units().values()}
    resampled = {k: rows for k, rows in kept_resamples.read(folder).items() if k in stems and rows}
    chosen = [
        row.model_dump()
        for record in records
        if isinstance(record, Category)
        for row in choices(record, options, document.run)
    ]
    shared = shared_by_layer(run, pairs)
    lesions = kept_changes(run)
    drawn = {
        "depth": figures_science.sharing_by_depth(shared[1:]) if len(shared) > 1 else "",
        "lesioned": figures_science.lesion_matrices(lesions) if lesions else "",
    }
    return Science(
        ceiling=mean_ceilings(folder).get(WHOLE),
        drawing=kept_resamples.settings(folder) if resampled else {},
        layers=_means([row for rows in resampled.values() for row in rows], "layer", RESAMPLED),
        chosen=_means(chosen, "stage", CHOSEN),
        each=_by_circuit(chosen, resampled.values()),
        shared=shared,
        structure=kept_structure(run),
        areas=[row for row in areas(run, records=records) if row.category == MEAN]
        if records else [],
        lesions=lesions,
        transfers=[
            _transfer(images, bias, rows)
            for images, rows in kept_transfers(run) for bias in ("frozen", "refitted")
        ],
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - matplotlib escapes
    )  # fmt: skip


def _means(rows: Sequence[Row], by: str, names: Sequence[str]) -> list[Row]:
    """Means of the rows of each layer or stage, in their order; of what is defined."""
    found = []
    for key in dict.fromkeys(row[by] for row in rows):
        mine = [row for row in rows if row[by] == key]
        known = {name: [r[name] for r in mine if r.get(name) is not None] for name in names}
        found.append({by: key, **{name: mean(values) for name, values in known.items()}})
    return found


def _transfer(images: str, bias: str, rows: Sequence[EvaluateRow]) -> Row:
    """Means over circuits on other images, with biases ``frozen`` or ``refitted``."""
    found = [row if bias == "frozen" else row.refitted for row in rows]
    every = [each for each in found if each is not None]
    row: Row = {"images": images, "bias": bias, "circuits": len(every)}
    for name in ("circuit", "unpruned", "random", "empty"):
        known = [at.csa for each in every if (at := getattr(each, name)) is not None]
        row[name] = mean(known)
    for name in ("over_random", "over_empty"):
        gaps = [gap for each in every if (gap := getattr(each, name)) is not None]
        row |= {name: mean(gaps), f"{name}_ci95": bootstrap(gaps, len(gaps))}
    return row


def _by_circuit(chosen: Sequence[Row], resampled: Any) -> list[Row]:
    """The rows of whole circuits, each with that of its resamples where there is one."""
    whole = {rows[0]["category"]: rows[0] for rows in resampled}
    blank = dict.fromkeys(RESAMPLED)
    return [
        {**blank, **whole.get(row["category"], {}), **row} for row in chosen if not row["stage"]
    ]
