"""Which way a masked layer runs on a GPU: forced, measured by `tune`, or cheapest by the model."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from circuitcore.kernels.masked import cost

PATHS = ("plain", "packed", "library")


def masked_path(
    op: str, shape: cost.MaskedShape, arch: str, impl: str = "auto", kept: float = 1.0
) -> str:
    """``plain``, ``packed`` or ``library``: how a masked layer runs on a GPU.

    What ``impl`` forces; else what `tune` measured on this device for a shape of this size; else
    the cheapest by the pure cost model.  ``kept``: mean kept fraction over the levels.
    """
    if impl.startswith("triton:"):
        return impl.partition(":")[2]
    if impl == "torch" or shape.dtype == "float64":
        return "library"
    paths = list(PATHS)
    if impl == "triton":  # a Triton kernel is wanted: the better of those there are
        paths.remove("library")
    measured = tuned().get(table_key(op, shape, arch))
    if measured in paths:
        return measured
    target = cost.device(arch, shape.dtype)
    return min(paths, key=lambda path: cost.gpu_seconds(path, shape, target, kept))


def table_key(op: str, shape: cost.MaskedShape, arch: str) -> str:
    """Shapes within a factor of two share an entry of the table."""
    sizes = [
        shape.levels, shape.batch, shape.rows, shape.columns, shape.groups,
    ]  # fmt: skip
    rounded = "x".join(str((size - 1).bit_length()) for size in sizes)
    return f"{op}/{arch}/{shape.dtype}/{'shared' if shape.shared else 'own'}/{rounded}"


def table_path() -> Path:
    """``tuned.json`` in ``CIRCUITCORE_CACHE``, else in the user's cache folder."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CIRCUITCORE_CACHE") or Path(cache_home) / "circuitcore") / (
        "tuned.json"
    )


@cache
def tuned() -> dict[str, str]:
    """The table `circuitcore.kernels.tune.tune` wrote; empty where it is missing or unreadable."""
    try:
        table = json.loads(table_path().read_text())
        return {key: path for key, path in table["paths"].items() if path in PATHS}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError):
        return {}
