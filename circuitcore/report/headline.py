"""The figures that head the report: each mean between its floor, its ceiling and its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcore.analysis.summary import mean
from circuitcore.records import Sweep

Tile = dict[str, Any]


def headline(
    document: Sweep, controls: Sequence[Mapping[str, Any]], overlap: Mapping[str, Any]
) -> list[Tile]:
    """What is pruned, CSA and hits held out, and overlap; empty where there is no circuit.

    ``controls``: `control_means`; ``overlap``: mean, chance and noise ceiling of pairs.  Of each:
    ``shown``, ``what`` and ``beside`` in words, and places on a scale of 0 to 100.
    """
    found = [(c, c.circuit) for c in document.categories if c.circuit is not None]
    if not found:
        return []
    pruned = [circuit.pruned for _, circuit in found]
    random = next((row for row in controls if row["control"] == "random"), None)

    def of(name: str) -> Tile:
        """A measure of held-out images, from the empty circuit's to the unpruned network's."""
        floor = mean([getattr(c.empty.heldout, name) for c, _ in found if c.empty is not None])
        ceiling = mean([getattr(c.unpruned.heldout_biased, name) for c, _ in found])
        control = None if random is None else random.get(name)
        return _between(
            mean([getattr(circuit.heldout, name) for _, circuit in found]),
            {"empty circuit": floor, "random mask": control, "unpruned network": ceiling},
            (floor, ceiling),
        )

    tiles = [
        {**_between(mean(pruned), {}, (min(pruned), max(pruned))), "what": "of the weights pruned",
         "shown": f"{100 * sum(pruned) / len(pruned):.1f} %",
         "beside": f"from {100 * min(pruned):.1f} to {100 * max(pruned):.1f} %"},
        {**of("csa"), "what": "CSA of the circuits, held out"},
        {**of("hit"), "what": "of the images hit, held out"},
    ]  # fmt: skip
    if overlap["mean"] is not None:
        chance, ceiling = overlap["chance"], overlap["ceiling"]
        between = _between(
            overlap["mean"], {"chance": chance, "noise ceiling": ceiling}, (chance, ceiling)
        )
        tiles.append({**between, "what": "overlap of two circuits"})
    return tiles


def _between(
    value: float | None, beside: Mapping[str, float | None], ends: tuple[float | None, float | None]
) -> Tile:
    """A value, what is named beside it, and their places; what is not known is left out."""
    known = {name: at for name, at in beside.items() if at is not None}
    low, high = (None if end is None else _place(end) for end in ends)
    return {
        "shown": "NA" if value is None else f"{value:.3f}",
        "beside": " · ".join(f"{name} {at:.3f}" for name, at in known.items()),
        "at": _place(value or 0.0),
        "ticks": [_place(at) for at in known.values()],
        "low": low if high is None else min(low or 0.0, high),
        "high": high,
    }


def _place(value: float) -> float:
    """On the scale: 0 to 1 as 0 to 100."""
    return round(100 * min(max(value, 0.0), 1.0), 1)
