"""A predicted sweep as text of 80 columns: counts, seconds, and what is assumed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitcore.extraction.planning.predict import Part, Prediction

WIDTH = 80


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
