"""Is this machine fit?  Each check is one line: ok, warning or failed, and what was found."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuitcore.progress import Progress

SMALL_MEMORY = 4e9
SMALL_DISK = 2e9
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Check:
    """``state`` is ok, warning or failed."""

    state: str
    what: str
    found: str


def examine(shown: Progress | None = None) -> list[Check]:
    """Run every check; one that raises is a failed line, not the end.  GPUs come last."""
    checks = []
    for check in (
        _python, _torch, _triton, _numba, _devices, _instructions, _memory, _disk, _caches, _example
    ):  # fmt: skip
        checks.append(_guarded(check))
    return checks + _kernels(shown)


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check("failed", check.__name__.strip("_"), f"{type(error).__name__}: {error}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Check:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("ok" if fits else "warning", "python", found + ("" if fits else "; untested"))


def _torch() -> Check:
    import torch

    build = torch.version.cuda and f"CUDA {torch.version.cuda}"
    build = build or (torch.version.hip and f"ROCm {torch.version.hip}") or "CPU only"
    return Check("ok", "torch", f"{torch.__version__} ({build}), torchvision "
                 f"{_version('torchvision')}")  # fmt: skip


def _triton() -> Check:
    found = _version("triton")
    if found:
        from circuitcore.kernels.compilers import missing

        if lacks := missing():  # NVIDIA's and AMD's GPUs alike
            return Check("warning", "triton", f"{found}; a GPU would run plain torch: {lacks}")
        return Check("ok", "triton", f"{found}, with a C compiler and Python.h")
    if platform.system() == "Linux":
        return Check("warning", "triton", "not installed: a GPU would run plain torch")
    return Check("ok", "triton", "not needed on this system")


def _numba() -> Check:
    import numba

    return Check("ok", "numba", f"{numba.__version__}, {numba.get_num_threads()} threads")


def _devices() -> Check:
    from circuitcore.machine.device import list_devices

    return Check("ok", "devices", ", ".join(f"{d.device} ({d.name})" for d in list_devices()))


def _instructions() -> Check:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return Check("ok", "instructions", platform.processor() or platform.machine())
    found = [name for name in INSTRUCTIONS if name in words]
    if "avx2" in found or "asimd" in found:
        return Check("ok", "instructions", ", ".join(found))
    return Check("warning", "instructions", "neither AVX2 nor NEON: the CPU will be slow")


def _memory() -> Check:
    from circuitcore.cli.tables import size
    from circuitcore.machine.device import free_host_memory

    free = free_host_memory()
    return Check("ok" if free > SMALL_MEMORY else "warning", "memory", f"{size(free)} free")


def _disk() -> Check:
    from circuitcore.cli.tables import size

    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        return Check("warning", "disk", f"{here} cannot be written: give --out elsewhere")
    return Check("ok" if free > SMALL_DISK else "warning", "disk", f"{size(free)} free in {here}")


def _caches() -> Check:
    import torch

    folders = [Path(torch.hub.get_dir()), Path(tempfile.gettempdir())]
    home = os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton"
    folders.append(Path(home))
    closed = [str(f) for f in folders if not _writable(f)]
    if str(folders[1]) in closed:
        return Check("failed", "caches", f"the temporary folder {folders[1]} cannot be written")
    if closed:
        return Check("warning", "caches", f"cannot be written: {', '.join(closed)}")
    return Check("ok", "caches", ", ".join(map(str, folders)))


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, can be written."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _example() -> Check:
    from circuitcore.cli.config import resolve
    from circuitcore.inputs.read import read_inputs

    inputs = read_inputs(resolve({}, environment={}))
    return Check(
        "ok", "example", f"{len(inputs.categories)} categories, {len(inputs.images)} images"
    )


SAID = {"passed": "ok", "failed": "failed", "not tested": "warning"}


def _kernels(shown: Progress | None) -> list[Check]:
    """A line for each call of the self-test, on one GPU of each name; none without a GPU."""
    import torch

    from circuitcore.kernels import selftest
    from circuitcore.kernels.compilers import missing

    if missing() or not torch.cuda.is_available():  # what is missing has a line of its own
        return []

    devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    checks = []
    for device in {torch.cuda.get_device_name(d): d for d in reversed(list(devices))}.values():
        outcomes = selftest.run(device, selftest.collect(), shown)
        checks += [
            Check(SAID[o.state], f"kernel {o.operation}", f"{o.what}, {o.dtype}: {o.found}")
            for o in outcomes
        ]
        try:
            selftest.keep(device, outcomes)
        except OSError as error:
            checks.append(Check("warning", "kernels", f"the result cannot be kept: {error}"))
    return checks
