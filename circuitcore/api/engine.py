"""Options of how to compute: the only ones that a call on a finished run may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitcore.errors import UsageError

ENGINE = ("device", "gpu", "impl", "memory", "no_fallback")


def engine_of(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Options of how to compute, the only ones that do not change what a run is."""
    if other := sorted(set(engine) - set(ENGINE)):
        known = ", ".join(ENGINE)
        raise UsageError(f"{other[0]}: only {known} can differ from the run's own options here")
    return dict(engine)
