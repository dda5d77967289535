"""What the self-test found of each operation's Triton kernels on a GPU; `dispatch` asks here.

Kept in ``selftest.json`` of the cache folder by what a verdict holds for: the device's name, the
driver, torch, Triton, and the source of the kernels themselves.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

from circuitcore.kernels import cache as files
from circuitcore.kernels.compilers import HAS_TRITON, triton

FILE = "selftest.json"
PASSED, FAILED, UNTESTED = "passed", "failed", "not tested"
DRIVERS = (
    "/sys/module/nvidia/version",
    "/sys/module/amdgpu/version",
    "/proc/driver/nvidia/version",
)


def operations() -> list[str]:
    """Every operation that has Triton kernels: the folders here that say what to try."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/trials.py"))


def states(device: torch.device) -> dict[str, str]:
    """``passed``, ``failed`` or ``not tested`` of every operation; empty without that GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return {}
    kept = files.read(FILE).get(key(device))
    kept = kept if isinstance(kept, dict) else {}
    known = {name: kept.get(name) for name in operations()}
    return {n: str(s) if s in (PASSED, FAILED) else UNTESTED for n, s in known.items()}


@cache
def failed(device: torch.device) -> frozenset[str]:
    """Operations whose kernels failed on a device: read once a process, and after `keep`."""
    return frozenset(name for name, state in states(device).items() if state == FAILED)


def keep(device: torch.device, found: dict[str, str]) -> None:
    """Write what a self-test found, and follow it from now on.  Raises OSError."""
    failed.cache_clear()
    files.write(FILE, files.read(FILE) | {key(device): found})


def key(device: torch.device) -> str:
    """What a verdict holds for, in words."""
    name = torch.cuda.get_device_name(device)
    compiler = triton.__version__ if HAS_TRITON else "none"
    return (
        f"{name}; driver {_driver()}; torch {torch.__version__}; triton {compiler}; "
        f"kernels {_sources()}"
    )


@cache
def _driver() -> str:
    for file in DRIVERS:
        try:
            return Path(file).read_text().split("\n")[0].strip()
        except OSError:
            continue
    return "unknown"


@cache
def _sources() -> str:
    """The kernels' source, in twelve digits."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
