"""The one dispatch rule: which implementation runs an operation on a tensor."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import torch

from circuitcore.kernels import cost
from circuitcore.kernels.compilers import HAS_TRITON, interpreted

IMPLS = ("auto", "torch", "triton", "numba")
PATHS = ("plain", "packed", "library")


def choose(impl: str, tensor: torch.Tensor, cpu: str = "torch") -> str:
    """Name the implementation: ``triton`` on a GPU, the operation's own ``cpu`` choice elsewhere.

    ``impl`` other than ``auto`` forces one; ``triton:plain`` and ``triton:packed`` (masked layers)
    also name the kernel.  Raises ValueError where the forced one cannot run.
    """
    family = impl.partition(":")[0]
    if family not in IMPLS or (family != impl and impl not in ("triton:plain", "triton:packed")):
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLS)}")
    if impl == "auto":
        return ("triton" if HAS_TRITON else "torch") if tensor.is_cuda else cpu
    if family == "triton" and not HAS_TRITON:
        raise ValueError("impl='triton': Triton is not installed (it exists for Linux only)")
    if family == "triton" and not tensor.is_cuda and not interpreted():
        raise ValueError("impl='triton' needs a tensor on a GPU, or TRITON_INTERPRET=1 on the CPU")
    if impl == "numba" and tensor.device.type != "cpu":
        raise ValueError("impl='numba' needs a tensor on the CPU")
    return family


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
    paths = [path for path in PATHS if not (op == "masked_conv2d" and path == "packed")]
    if impl == "triton":  # a Triton kernel is wanted: the better of those there are
        paths.remove("library")
    measured = tuned().get(table_key(op, shape, arch))
    if measured in paths:
        return measured
    target = cost.device(arch, shape.dtype)
    return min(paths, key=lambda path: cost.gpu_seconds(path, shape, target, kept))


def architecture(device: torch.device) -> str:
    """``sm_90``, ``gfx942`` ... of a GPU; ``sm_90`` for the interpreter's tensors on the CPU."""
    if device.type != "cuda":
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    named = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return named.split(":")[0] or f"sm_{properties.major}{properties.minor}"


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
