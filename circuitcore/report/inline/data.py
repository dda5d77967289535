"""The data of a page as its script reads them: compact, a list by category, numbers as bytes.

Of 1,000 categories, at most (`tests/report/test_size.py`): the matrix, a byte a pair, 0.7 MB;
curves, two 16-bit numbers a level, 0.5 MB; a thumbnail a category 1.4 MB; names, ends and the five
most similar circuits of each 0.3 MB.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from circuitcore.analysis.rows import stage_names
from circuitcore.errors import one_line
from circuitcore.records import Category, Found
from circuitcore.report import figures
from circuitcore.report.figure_style import COLOURS
from circuitcore.report.inline.pictures import KIND, Pictures, Seen, Shown

SIMILAR = 5
EXACT_UP_TO = 256  # circuits whose overlaps have three digits; of more a byte each, 1 / 255 apart
DECADES = 7.0  # of kept fractions that 16 bits are spread over
LOWEST, STEPS = -1.0, 20_000  # of what levels are worth; below is off every scale
UNDEFINED = 65_535


def page_data(
    found: Sequence[Found], overlap: np.ndarray, order: Sequence[int], pictures: Pictures
) -> dict[str, Any]:
    """Everything of the report of these records; ``overlap`` float [K, K] of their circuits.

    ``order``: of the circuits in the matrix, by clustering.
    """
    circuits = [place for place, record in enumerate(found) if record.circuit is not None]
    known = len(circuits) == len(overlap)
    return {
        **categories_data(found, pictures),
        "matrix": matrix_data(overlap, circuits, order) if known and len(circuits) > 1 else None,
        "similar": similar(overlap, circuits, len(found)) if known else [[] for _ in found],
    }


def categories_data(found: Sequence[Found], pictures: Pictures) -> dict[str, Any]:
    """What concerns each category alone: names, curves, pictures."""
    swept = tuple(dict.fromkeys(stage.stage for record in found for stage in record.stages))
    stages = swept or stage_names(found)
    units = [record.index for record in found]
    return {
        "names": [one_line(record.category) for record in found],
        "units": units,
        "stages": [one_line(stage) for stage in stages],
        "colours": [colour_of(stage, stages) for stage in stages],
        "height": figures.height_label(found),
        "curves": curves_data(found, stages),
        "kind": KIND,
        "thumbs": list(pictures.thumbs),
        "own": [pictures.own.get(unit, -1) for unit in units],
        "seen": [_seen(pictures.seen.get(record.index), record) for record in found],
        "drawings": [pictures.drawings.get(unit) for unit in units] if pictures.drawings else [],
        "missing": pictures.missing,
        "pages": "",
    }


def colour_of(stage: str, stages: Sequence[str]) -> str:
    """A stage's colour in the figures, by variable where it has one."""
    colour = figures.stage_colour(stage, stages)
    return f"var({COLOURS[colour]})" if colour in COLOURS else colour


def curves_data(found: Sequence[Found], stages: Sequence[str]) -> dict[str, Any]:
    """Levels of every category and stage: kept fraction on a log scale and worth, 16 bits each.

    ``levels``: how many, by category and stage; ``chosen``: which of them; ``threshold``: by stage;
    ``ends``: what the unpruned network and the empty circuit are worth.
    """
    counts, chosen, thresholds, ends = [], [], [], []
    points: list[tuple[float, float | None]] = []
    for record in found:
        by_name = {stage.stage: stage for stage in record.stages}
        for name in stages:
            stage = by_name.get(name)
            levels = [x for x in stage.levels if x.kept_weights > 0] if stage else []
            counts.append(len(levels))
            at = stage.levels[stage.chosen] if stage else None
            chosen.append(levels.index(at) if at in levels else -1)
            thresholds.append(rounded(figures.threshold_of(stage)) if stage else None)
            if stage is not None:
                what, relevant = figures.judged(stage), stage.relevant_weights
                points += [(x.kept_weights / relevant, getattr(x, what)) for x in levels]
        both = figures.ends(record)
        ends.append(both and [rounded(value) for value in both])
    return {
        "levels": counts,
        "chosen": chosen,
        "threshold": thresholds,
        "ends": ends,
        "points": packed(np.array([_sixteen(*point) for point in points], "<u2")),
        "decades": DECADES,
        "lowest": LOWEST,
        "steps": STEPS,
    }


def _sixteen(kept: float, worth: float | None) -> tuple[int, int]:
    """A level's kept fraction and worth as two numbers below 65,536."""
    across = min(-math.log10(kept) / DECADES, 1.0)
    if worth is None or math.isnan(worth):
        return round(across * 65_535), UNDEFINED
    height = min(max(worth - LOWEST, 0.0) * STEPS, UNDEFINED - 1)
    return round(across * 65_535), round(height)


def matrix_data(
    overlap: np.ndarray, circuits: Sequence[int], order: Sequence[int]
) -> dict[str, Any]:
    """Overlap of all pairs above the diagonal, in this order, row by row.

    ``order``: places of the circuits among the categories; ``scale``: what the numbers are
    multiples of.
    """
    exact = len(overlap) <= EXACT_UP_TO
    steps, kind = (1000, "<u2") if exact else (255, "u1")
    upper = overlap[np.ix_(order, order)][np.triu_indices(len(order), k=1)]
    return {
        "order": [circuits[i] for i in order],
        "bytes": 2 if exact else 1,
        "scale": steps,
        "values": packed(np.rint(np.clip(upper, 0, 1) * steps).astype(kind)),
    }


def similar(overlap: np.ndarray, circuits: Sequence[int], count: int) -> list[list[list[float]]]:
    """By category the circuits that share most with its own: [place, overlap], most first."""
    found: list[list[list[float]]] = [[] for _ in range(count)]
    for row, place in enumerate(circuits):
        others = np.delete(np.arange(len(circuits)), row)
        best = others[np.argsort(-overlap[row, others], kind="stable")[:SIMILAR]]
        found[place] = [[circuits[i], round(float(overlap[row, i]), 3)] for i in best]
    return found


def packed(values: np.ndarray) -> str:
    """Bytes of an array as base64."""
    return base64.b64encode(values.tobytes()).decode()


def rounded(value: float | None) -> float | None:
    """To four digits behind the point; None where it is no number."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _seen(seen: Seen | None, record: Found) -> Mapping[str, Any] | None:
    """Images of a category by kind, and how many there are."""
    if seen is None or not isinstance(record, Category) or record.circuit is None:
        return None

    def listed(shown: Sequence[Shown]) -> list[list[Any]]:
        return [[-1 if s.thumb is None else s.thumb, one_line(s.category), s.margin, s.unpruned]
                for s in shown]  # fmt: skip

    alarms = record.circuit.heldout.false_alarms
    counts = {"hits": seen.hit, "misses": seen.missed, "alarms": alarms}
    return {
        "counts": counts,
        "hits": listed(seen.hits),
        "misses": listed(seen.misses),
        "alarms": listed(seen.alarms),
    }
