"""A planned sweep as text of 80 columns: steps, counts, seconds, and what is assumed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitcore.extraction.planning.plan import CategoryPlan, Plan
    from circuitcore.extraction.planning.predict import Part, Prediction

WIDTH = 80


def plan_rows(planned: Plan) -> list[dict[str, Any]]:
    """A row a layer and level of exact plans, a part where seconds are predicted, else a step."""
    rows = [
        {"category": each.category, "stage": stage.stage, **layer.model_dump()}
        for each in planned.exact
        for stage in each.stages
        for layer in stage.layers
    ]
    if rows:
        return rows
    there = planned.target
    parts = planned.steps if there is None else [*there.category, *there.run]
    return [part.model_dump() for part in parts]


def plan_table(planned: Plan) -> str:
    """Steps, exact plans and a prediction where there are, and what all of it comes to."""
    from circuitcore.cli.tables import size, table

    rows = [
        [s.what, f"{s.count:,}", f"{s.multiply_adds:.3g}", f"{s.fpe:.2f}", size(s.bytes)]
        for s in planned.steps
    ]
    text = table(["step", "times", "multiply-adds", "FPE", "memory"], rows)
    text += "".join(_exact_table(each) for each in planned.exact)
    seconds = "not probed" if planned.seconds is None else f"about {planned.seconds:.0f} s"
    said = (
        f"{planned.categories} categories of {planned.fpe:.1f} FPE (at most "
        f"{planned.fpe_upper:.1f}), {planned.multiply_adds:.3g} multiply-adds each; "
        f"{planned.shared_fpe:.1f} FPE shared"
    )
    return (
        f"{text}\n{textwrap.fill(said, 80)}\n"
        f"{planned.device}: {size(planned.memory_bytes)} memory, "
        f"{size(planned.disk_bytes)} disk, {seconds}\n"
        f"{'' if planned.target is None else prediction_text(planned.target)}"
    )


def _exact_table(planned: CategoryPlan) -> str:
    """One row a level: what every layer reads and writes, and how."""
    from circuitcore.cli.terminal.layout import folded, table

    text = ""
    for stage in planned.stages:
        layers = list(dict.fromkeys(each.layer for each in stage.layers))
        cells = {(e.level, e.layer): f"{e.columns}>{e.rows} {e.path}" for e in stage.layers}
        rows = [
            [str(t), *(cells.get((t, layer), "-") for layer in layers), f"{work:.3g}"]
            for t, work in stage.by_level().items()
        ]
        said = f"{planned.category}, {stage.stage} stage, {stage.images} images: inputs > outputs"
        text += f"\n{folded(f'{said} that are alive')}\n"
        text += table(["level", *layers, "multiply-adds"], rows)
    said = f"{planned.category}: {planned.fpe:.3f} FPE exactly, with --screen off"
    return f"{text}{folded(said)}\n"


def prediction_text(said: Prediction) -> str:
    """Counts by part, seconds by part, their sums, what is assumed."""
    lines = [
        "",
        f"{said.name}, swept in {said.precision}; looks: {said.looks}",
        "",
        *_counts("a category", said.category),
        *_counts("once a run", said.run),
        *(_seconds(part) for part in [*said.category, *said.run]),
        "",
        _line(f"a category, {said.precision}", said.seconds_per_category, said.mark),
        *(
            _line(f"a category, {name}", seconds, said.mark)
            for name, seconds in said.other_precisions.items()
        ),
        _line(f"{said.categories:,} categories", said.seconds, said.mark),
    ]
    if said.before is not None:
        lines += [
            "",
            f"before, {said.before.part}, without host work:",
            _line("a category", said.before.seconds, said.mark),
        ]
    lines += ["", "assumed:", *_assumed(said)]
    return "".join(
        f"{line}\n"
        for each in lines
        for line in (textwrap.wrap(each, WIDTH) if len(each) > WIDTH else [each])
    )


def _counts(title: str, parts: Sequence[Part]) -> Iterator[str]:
    from circuitcore.cli.tables import size, table

    rows = [
        [p.part, f"{p.multiply_adds:.3g}", size(p.bytes), f"{p.launches:,}", f"{p.replays:,}",
         f"{p.syncs:,}", size(p.pcie_bytes)]
        for p in parts
    ]  # fmt: skip
    headings = [title, "multiply-adds", "memory", "launches", "replays", "syncs", "PCIe"]
    yield from table(headings, rows).splitlines()
    yield ""


def _seconds(part: Part) -> str:
    beside = "; beside" if part.beside else ""
    return _line(part.part, part.seconds, f"{part.mark}{beside}")


def _line(what: str, seconds: float, mark: str) -> str:
    shown = f"{seconds:.4f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
    return f"{what:24}{shown:>11}  {mark}"


def _assumed(said: Prediction) -> Iterator[str]:
    for each in said.assumptions:
        text = f"{each.what} ({each.source})"
        yield from textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
