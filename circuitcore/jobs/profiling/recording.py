"""Run something while a profiler watches: torch's in this process, Nsight Systems around one."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from circuitcore.errors import DeviceError, InputError
from circuitcore.jobs.profiling.chrome import PREFIX, TOLD
from circuitcore.kernels.spans import shown_to

STDERR = 2  # what is asked for alone goes to stdout
SQLITE, REPORT = ".sqlite", ".nsys-rep"
CAPTURED_RANGE = "sweep@circuitcore"  # of `jobs.job.sweep`
NO_NSYS = (
    "nsys, Nsight Systems, is not on PATH: install it (it comes with the CUDA toolkit), or take "
    "--profiler torch"
)


class TorchDomain:
    """Stands in the place of the NVTX domain: ranges and marks become torch's own operations."""

    def __init__(self) -> None:
        self._open = threading.local()
        # a tenth of the cost of `torch.profiler.record_function`, which is there whatever happens
        fast = getattr(torch._C._profiler, "_RecordFunctionFast", None)
        self._record: Callable[[str], Any] = fast or torch.profiler.record_function

    def get_event_attributes(
        self, message: str, color: str, category: str, payload: int | None
    ) -> str:
        """The name of the operation, which holds all there is to know of a range."""
        return f"{PREFIX}{category}|{'' if payload is None else payload}|{message}"

    def push_range(self, attributes: str) -> None:
        """Open a range of this thread."""
        record = self._record(attributes)
        record.__enter__()
        self._open.__dict__.setdefault("stack", []).append(record)

    def pop_range(self) -> None:
        """Close the innermost one."""
        self._open.stack.pop().__exit__(None, None, None)

    def mark(self, attributes: str) -> None:
        """An operation that takes no time."""
        with self._record(attributes):
            pass


@contextlib.contextmanager
def recording(path: Path, told: Callable[[], str], gpu: bool) -> Iterator[None]:
    """Torch's profiler watches meanwhile, all threads of this process; its trace goes to ``path``.

    ``told``: gives JSON that is kept in the trace, asked at the end; ``gpu``: what runs there is
    recorded too.  The trace is written when the block ends without an exception, gzipped where
    ``path`` ends in ``.gz``.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines on stderr are about itself
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * gpu
    profiler = torch.profiler.profile(activities=kinds, **_every_thread())
    with profiler, shown_to(TorchDomain()):
        yield
        if gpu:
            torch.cuda.synchronize()
        profiler.add_metadata_json(TOLD, told())
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    profiler.export_chrome_trace(str(plain))
    if plain != path:
        with plain.open("rb") as source, gzip.open(path, "wb") as packed:
            shutil.copyfileobj(source, packed)
        plain.unlink()


def _every_thread() -> dict[str, Any]:
    """What has torch record other threads than this one, where it can."""
    config = getattr(torch._C._profiler, "_ExperimentalConfig", None)
    with contextlib.suppress(TypeError):
        return {"experimental_config": config(profile_all_threads=True)} if config else {}
    return {}


def nsys() -> str:
    """The command of Nsight Systems.  Raises DeviceError where it is not on PATH."""
    found = shutil.which("nsys")
    if found is None:
        raise DeviceError(NO_NSYS)
    return found


def under_nsys(arguments: Sequence[str], report: Path) -> int:
    """``circuitcore sweep ARGUMENTS`` under Nsight Systems, which records the sweep itself.

    Not what loads models and images before it.  Returns the sweep's exit code.
    """
    command = [
        nsys(), "profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node",
        "--capture-range=nvtx", f"--nvtx-capture={CAPTURED_RANGE}", "--capture-range-end=stop",
        f"--output={report.with_suffix('')}", "--force-overwrite=true",
        sys.executable, "-P", "-m", "circuitcore.cli.main", "sweep", *arguments,
    ]  # fmt: skip
    # the table of circuits is not what was asked for
    return subprocess.run(command, check=False, stdout=STDERR).returncode


def exported(report: Path) -> Path:
    """The SQLite file of a report of Nsight Systems, beside it.  Raises InputError without one."""
    if not report.is_file():
        raise InputError(f"{report}: nsys left no report there: see its lines above")
    path = report.with_suffix(SQLITE)
    command = [nsys(), "export", "--type=sqlite", f"--output={path}", "--force-overwrite=true"]
    done = subprocess.run([*command, str(report)], check=False, stdout=STDERR)
    if done.returncode or not path.is_file():
        raise InputError(f"{report}: nsys export ended with {done.returncode}: see its lines above")
    return path
