"""Which way a masked linear layer runs on a GPU: forced, measured by `tune`, or cheapest by count.

``fused`` is the Triton kernel, ``library`` a product of weights masked beforehand.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from circuitcore.kernels import cache as files
from circuitcore.kernels.masked.gpu_cost import KINDS, MaskedShape, cheapest

PATHS = ("fused", "library")
TABLE = "tuned.json"


def masked_path(shape: MaskedShape, arch: str, impl: str = "auto") -> str:
    """``fused`` or ``library``: how a masked linear layer runs on a GPU.

    The library where products of float32 or float64 are asked for in full; else what ``impl``
    forces; what `tune` measured on this device for a shape of this size; the cheapest by
    `gpu_cost`.
    """
    if impl == "torch" or shape.dtype not in KINDS:
        return "library"
    if impl == "triton":
        return "fused"
    return tuned().get(table_key(shape, arch)) or cheapest(shape, arch)


def table_key(shape: MaskedShape, arch: str) -> str:
    """Shapes within a factor of two share an entry of the table."""
    sizes = [shape.levels, shape.batch, shape.rows, shape.columns]
    rounded = "x".join(str((size - 1).bit_length()) for size in sizes)
    return f"{arch}/{shape.dtype}/{'shared' if shape.shared else 'own'}/{rounded}"


def table_path() -> Path:
    """Where the table is."""
    return files.folder() / TABLE


@cache
def tuned() -> dict[str, str]:
    """The table `circuitcore.kernels.tune.tune` wrote; empty where it is missing or unreadable."""
    kept = files.read(TABLE).get("paths")
    kept = kept if isinstance(kept, dict) else {}
    return {key: path for key, path in kept.items() if path in PATHS}
