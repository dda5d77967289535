"""Device kernels: one operation a file, its reference beside it.

``circuitcore.kernels.masked_linear`` is the module, ``masked_linear.masked_linear`` the operation
in it, and so for every operation named as its file.  The other public names are re-exported here
lazily: importing this package imports neither torch, Triton nor numba, the first use of one does.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "linear_factors": "score_linear",
    "Assignment": "levels",
    "LayerScores": "levels",
    "assign_levels": "levels",
    "assign_unit_levels": "levels",
    "score_range": "levels",
    "overlap_counts": "overlap",
    "overlap_counts_mapped": "overlap",
    "BestBias": "best_bias",
}


def __getattr__(name: str) -> Any:
    """The object called ``name`` from its operation's file; AttributeError for anything else."""
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
