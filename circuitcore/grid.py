"""The grid of levels: which pruned fractions a sweep visits (Andrade & Konkle 2025, Extraction).

A level is a pruned fraction; its kept fraction is one minus it.  No torch here, so that options can
be checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass

SPARSEST_KEPT = 0.001
MOST_LEVELS = 255  # one unsigned byte a weight encodes a whole nested sweep


@dataclass(frozen=True)
class Grid:
    """Pruned fractions from 0 (always there), increasing; ``note`` says what was put in order."""

    fractions: tuple[float, ...]
    note: str = ""


def parse_levels(text: str) -> Grid:
    """Read ``32`` (a count, geometric in the kept fraction from 1 to 0.001), ``linear:51`` (evenly
    from 0 to 1) or ``0,0.5,0.9`` (pruned fractions).

    Raises ValueError where the text is none of these, a fraction lies outside [0, 1], or there are
    more than 255 levels.
    """
    text = text.strip()
    if text.startswith("linear:"):
        count = _count(text.removeprefix("linear:"), text)
        return Grid(tuple(i / (count - 1) for i in range(count)))
    if "," not in text and "." not in text:
        count = _count(text, text)
        last = count - 1
        return Grid(tuple(1 - SPARSEST_KEPT ** (i / last) for i in range(count)))
    try:
        given = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"levels {text!r}: a count, linear:COUNT, or fractions 0,0.5,0.9"
        ) from None
    outside = [g for g in given if not 0 <= g <= 1]
    if outside:
        raise ValueError(f"levels {text!r}: pruned fractions lie in [0, 1], not {outside[0]}")
    ordered = tuple(sorted({0.0, *given}))
    if len(ordered) > MOST_LEVELS:
        raise ValueError(f"levels: {len(ordered)} of them, at most {MOST_LEVELS}")
    if len(ordered) < 2:
        raise ValueError(f"levels {text!r}: at least one level besides the unpruned one")
    notes = []
    if given != sorted(given):
        notes.append("sorted")
    if len(set(given)) < len(given):
        notes.append("repeated ones dropped")
    if 0.0 not in given:
        notes.append("the unpruned level added")
    return Grid(ordered, ", ".join(notes))


def _count(text: str, whole: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ValueError(
            f"levels {whole!r}: a count, linear:COUNT, or fractions 0,0.5,0.9"
        ) from None
    if not 2 <= count <= MOST_LEVELS:
        raise ValueError(f"levels {whole!r}: from 2 to {MOST_LEVELS} levels")
    return count
