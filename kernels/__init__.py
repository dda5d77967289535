"""Device kernels: one operation a folder, its reference beside its fast versions.

In each: ``operation`` is what callers call, its docstring the equation; ``reference`` the same in
plain torch, the specification; ``gpu`` (Triton) and ``cpu`` (numba) are fast.  ``dispatch`` picks.
What is public is named here too, lazily: importing this package imports neither torch, Triton nor
numba, the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "linear_factors": "score_linear.factors",
    "Assignment": "levels.layer",
    "LayerScores": "levels.layer",
    "assign_levels": "levels.operation",
    "assign_unit_levels": "levels.operation",
    "score_range": "levels.operation",
    "overlap_counts": "overlap.operation",
    "overlap_counts_mapped": "overlap.operation",
    "BestBias": "best_bias.reference",
}


def __getattr__(name: str) -> Any:
    """The object called ``name`` from its operation's file; AttributeError for anything else."""
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
