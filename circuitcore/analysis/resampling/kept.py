"""`resamples.json` of a run folder: rows of each circuit, by its file, as `resample` left them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitcore.machine.files import read_sealed, sealed, write_atomically

FILE = "resamples.json"
WHOLE = ""  # stands for the layer in the row of all of them

Rows = dict[str, list[dict[str, Any]]]


def read(folder: Path, settings: Mapping[str, Any] | None = None) -> Rows:
    """Rows by the circuits' files; none where nothing is there, or it is damaged: made anew.

    ``settings``: none either where they were made with others.
    """
    try:
        found = read_sealed(folder / FILE)
        made = settings is None or found["settings"] == settings
        return dict(found["circuits"]) if made else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def settings(folder: Path) -> dict[str, Any]:
    """What kept rows were made with; empty where there are none."""
    try:
        return dict(read_sealed(folder / FILE)["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep(folder: Path, settings: Mapping[str, Any], rows: Rows) -> None:
    """Write them, whole."""
    document = {"settings": settings, "circuits": rows}
    write_atomically(folder / FILE, sealed(document))


def ceilings(folder: Path) -> dict[tuple[str, str], float]:
    """The noise ceiling of each circuit, by its file, and layer; those that there are."""
    try:
        return {
            (stem, row["layer"]): row["ceiling"]
            for stem, rows in read(folder).items()
            for row in rows
            if row["ceiling"] is not None
        }
    except (KeyError, TypeError):  # damaged
        return {}


def mean_ceilings(folder: Path) -> dict[str, float]:
    """By layer over the circuits, `WHOLE` among them; empty where `resample` has not been there."""
    found: dict[str, list[float]] = {}
    for (_, layer), value in ceilings(folder).items():
        found.setdefault(layer, []).append(value)
    return {layer: float(np.mean(values)) for layer, values in found.items()}
