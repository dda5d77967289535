"""What a circuit said of single held-out images, as its unit file keeps it beside the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

TEXT = "decisions"  # in the header of a unit file; not there in those of earlier versions


class Decision(NamedTuple):
    """One held-out image: the category's own (``target``) or another one.

    ``image``: which of the held-out images, in the order of the image list; ``margin``: activation
    and bias less the largest other logit of the unpruned network, a_n + b - m_n, in logits: the
    image is predicted as the category iff it is above 0; ``unpruned``: the same of the unpruned
    network at its own extraction bias.  Both to four digits.
    """

    image: int
    target: bool
    margin: float
    unpruned: float


def as_text(decisions: Sequence[Decision]) -> str:
    """Decisions as compact JSON, a list a field."""
    columns = zip(*decisions, strict=True) if decisions else [()] * len(Decision._fields)
    told = {
        name: [int(v) if name == "target" else v for v in values]
        for name, values in zip(Decision._fields, columns, strict=True)
    }
    return json.dumps(told, separators=(",", ":"))


def of_text(text: str) -> list[Decision]:
    """What `as_text` wrote.  Raises ValueError where it is something else."""
    found: Any = json.loads(text)
    try:
        rows = zip(*(found[name] for name in Decision._fields), strict=True)
        return [Decision(int(i), bool(t), float(m), float(u)) for i, t, m, u in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"its decisions are no table: {error}") from None
