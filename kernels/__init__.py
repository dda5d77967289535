"""Device kernels: one operation a file, its reference beside it.

The operations are re-exported here lazily: importing this package imports neither torch, Triton
nor numba, the first use of a name does.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "score_linear": "score_linear",
    "linear_factors": "score_linear",
    "score_conv": "score_conv",
    "Assignment": "levels",
    "LayerScores": "levels",
    "assign_levels": "levels",
    "assign_unit_levels": "levels",
    "score_range": "levels",
    "masked_linear": "masked_linear",
    "masked_conv2d": "masked_conv2d",
    "overlap_counts": "overlap",
    "overlap_counts_mapped": "overlap",
    "BestBias": "best_bias",
    "best_bias": "best_bias",
}
__all__ = sorted(_HOME)  # noqa: PLE0605 - the table above is the list


def __getattr__(name: str) -> Any:
    """The operation called ``name``, or the module of the same name where there is no operation.

    Raises AttributeError for anything else.
    """
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
