"""A folder of pages beside the report, one a category, each a self-contained file.

Where a run has so many categories that their pictures and drawings would make one file heavy; the
report links to them by relative addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitcore.analysis.rows import rows_of
from circuitcore.errors import one_line
from circuitcore.machine.files import write_atomically
from circuitcore.progress import Progress
from circuitcore.records import Found, Sweep, TargetSweep
from circuitcore.report.inline.data import categories_data, similar
from circuitcore.report.inline.pictures import Album, album_of, drawings_of, pictures_of
from circuitcore.report.templates import template
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.intact import sealed_page

FOLDER = "pages"
SIDE, SMALL = 96, 40  # pixels of a picture; of one of another category
MOST = 24  # hits, misses and false alarms of a category
FACTS = {  # of `rows_of`, in order, as they are called here; those that a record has
    "pruned": "pruned", "kept_weights": "kept weights", "bias": "bias",
    "heldout_hit": "hit", "unpruned_heldout_biased_hit": "hit, unpruned",
    "heldout_false_alarms": "false alarms",
    "unpruned_heldout_biased_false_alarms": "false alarms, unpruned",
    "heldout_csa": "CSA", "unpruned_heldout_biased_csa": "CSA, unpruned",
    "empty_heldout_csa": "CSA, empty circuit", "csa_ratio_biased": "CSA ratio",
    "csa_ratio_biased_low": "CSA ratio from", "csa_ratio_biased_high": "CSA ratio to",
    "faithfulness": "faithfulness", "judge": "judge", "extraction": "agreement, extraction",
    "heldout": "agreement, held out", "random_heldout": "agreement of random masks, held out",
}  # fmt: skip


def linked(folder: Path) -> str:
    """Where the report finds pages of single categories, relative to it; "" where there are none.

    ``folder``: the run's.
    """
    return f"{FOLDER}/" if next((folder / FOLDER).glob("*.html"), None) else ""


def write_pages(
    run: RunFolder, document: Sweep | TargetSweep, overlap: np.ndarray, report: str,
    progress: Progress,
) -> Path:  # fmt: skip
    """Write ``pages/UNIT.html`` of every category or target into a run folder; their folder.

    ``overlap``: float [K, K] of the circuits; ``report``: the file to link back to.
    """
    found: Sequence[Found] = (
        document.categories if isinstance(document, Sweep) else document.targets
    )
    circuits = [place for place, record in enumerate(found) if record.circuit is not None]
    alike = similar(overlap, circuits, len(found))
    rows, album = rows_of(found, run.manifest), album_of(run)
    progress.start("pages", len(found))
    for place, record in enumerate(found):
        text = template("category.html.j2").render(
            data=_data(album, found, place, alike[place]),
            name=one_line(record.category),
            unit=record.index,
            report=report,
            model=one_line(document.run["model"]["name"]),
            undefined=record.undefined,
            facts=_facts(rows[place]),
            circuits=len(circuits),
            version=document.run["versions"]["circuitcore"],
        )
        content = text.encode("utf-8", "backslashreplace")
        write_atomically(run.folder / FOLDER / f"{record.index}.html", sealed_page(content))
        progress.advance(1, record.category)
    return run.folder / FOLDER


def _data(
    album: Album, found: Sequence[Found], place: int, alike: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """A page's data: the category, and those like it behind it, by name and with a picture."""
    record = found[place]
    others = [found[int(other)] for other, _ in alike]
    unit = record.index
    drawn = drawings_of(album.run, [unit])
    pictures = replace(pictures_of(album, [unit], SIDE, MOST), drawings=drawn)
    data = categories_data([record], pictures)
    beside = pictures_of(album, [other.index for other in others], SMALL, 0)
    own = [beside.own.get(other.index, -1) for other in others]
    data["own"] += [n if n < 0 else n + len(data["thumbs"]) for n in own]
    data["thumbs"] += beside.thumbs
    data["names"] += [one_line(other.category) for other in others]
    data["units"] += [other.index for other in others]
    return {**data, "matrix": None, "alone": True,
            "similar": [[[n + 1, value] for n, (_, value) in enumerate(alike)]]}  # fmt: skip


def _facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of a category, in words and figures."""
    known = [(name, row.get(key)) for key, name in FACTS.items()]
    return [(name, _shown(name, value)) for name, value in known if value is not None]


def _shown(name: str, value: Any) -> str:
    if name == "pruned":
        return f"{100 * value:.2f} %"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
