"""Fair races between contenders, on the CPU or, where there is one, the GPU.

Contenders run interleaved, round by round, each from cold caches, so that drifting clocks and
warm memory favour none; quantiles are reported, not means.  On a GPU time is taken with events.
``pytest bench`` runs everything here; ``--benchmark-json`` writes the rows, ``--keep`` keeps them
as a baseline, ``circuitcore bench compare`` holds two runs against each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # table.py is no test

from table import markdown  # noqa: E402

from circuitcore.jobs.profiling.benchmarks import RACE, Row, Times, keep_rows
from circuitcore.jobs.profiling.peaks import Peaks, peaks_of
from circuitcore.machine.device import DTYPES, Machine

ROWS: list[Row] = []
ABOUT = ("dtype", "shape", "fpe", "multiply_adds", "bytes")  # keys of a note that a row is about
COLD_BYTES = 256 << 20  # larger than any last-level cache
HERE = Path(__file__).parent


def pytest_configure(config):
    if config.option.markexpr == "not bench and not slow":  # plain `pytest`; here they are meant
        config.option.markexpr = ""
    if config.getoption("--keep") and not config.getoption("benchmark_json", None):
        path = Path(tempfile.mkdtemp(prefix="bench-")) / "run.json"
        config.option.benchmark_json = str(path)  # written when the session ends


def pytest_addoption(parser):
    kept = "keep the rows in this JSON file, or in a folder in the file of this device"
    parser.addoption("--keep", metavar="FILE", help=kept)


def pytest_terminal_summary(terminalreporter, config):
    """One table of all races, whatever was captured before."""
    if ROWS:
        terminalreporter.write_line("\n" + markdown(ROWS) + "\n")
        if config.getoption("--keep"):
            written = Path(config.getoption("benchmark_json"))
            kept = keep_rows(written, Path(config.getoption("--keep")))
            terminalreporter.write_line(f"kept in {kept}")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker("bench")


@dataclass(frozen=True)
class Race:
    """Seconds of every round of every contender."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        times = sorted(self.seconds[name])
        return times[len(times) // 2]

    def ratio(self, name: str, ours: str) -> float:
        """How many times faster ``ours`` is than ``name``, by medians."""
        return self.median(name) / self.median(ours)

    def table(self, ours: str) -> str:
        width = max(map(len, self.seconds))
        rows = []
        for name, times in self.seconds.items():
            row = f"  {name:{width}}  {self.median(name):10.4f} s"
            row += f"  [{min(times):.4f}, {max(times):.4f}]"
            rows.append(row + ("" if name == ours else f"  {self.ratio(name, ours):7.1f} x"))
        return "\n".join(rows)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one; with ``CIRCUITCORE_REQUIRE_GPU=1`` never anything else."""
    if os.environ.get("CIRCUITCORE_REQUIRE_GPU") == "1" and not torch.cuda.is_available():
        pytest.fail("CIRCUITCORE_REQUIRE_GPU=1, but torch finds no GPU", pytrace=False)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def race(benchmark, device, capsys) -> Callable[..., Race]:
    """race(contenders, ours, rounds=5, scale={}, note={}, once=()) -> Race.

    ``contenders``: name -> function without arguments.  ``scale``: name -> factor, for one that
    is run on a stated part of the work; ``once`` names those that run in the first round only.
    The row of ``ours`` is what pytest-benchmark records; the rounds of all of them, the device and
    ``note`` go into its extra_info.  Of a note ``dtype``, ``shape``, ``fpe``, and
    ``multiply_adds`` and ``bytes``, for the part of the roofline that ours reaches, are told apart.
    """

    def run(
        contenders: dict[str, Callable[[], Any]],
        ours: str,
        rounds: int = 5,
        scale: dict[str, float] | None = None,
        note: dict[str, Any] | None = None,
        once: tuple[str, ...] = (),
    ) -> Race:
        cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device=device)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        contenders[ours]()  # compile
        gc.collect()
        gc.disable()
        try:
            for number in range(rounds):
                for name, function in contenders.items():
                    if number and name in once:  # a contender of minutes
                        continue
                    cold.fill_(number)
                    factor = (scale or {}).get(name, 1.0)
                    seconds[name].append(_seconds(function, device) * factor)
        finally:
            gc.enable()
        result = Race(seconds)
        times = {name: Times.of(each) for name, each in seconds.items()}
        about = _about(note or {}, times[ours].median, device)
        told = {name: str(value) for name, value in (note or {}).items() if name not in ABOUT}
        benchmark.extra_info[RACE] = {
            **about, "ours": ours, "rounds": seconds, "note": told,
            "quantiles": {name: each.quantiles() for name, each in times.items()},
        }  # fmt: skip
        _record(benchmark, iter(seconds[ours]), rounds)
        ROWS.append(Row(benchmark.name, about["device"], ours, times, about, told))
        with capsys.disabled():
            print(f"\n{benchmark.name} on {_device_name(device)}")
            print(result.table(ours))
            for name, value in (note or {}).items():
                print(f"  {name}: {value}")
        return result

    return run


def _about(note: Mapping[str, Any], seconds: float, device: torch.device) -> dict[str, Any]:
    """What a row is of, and the part of the roofline that ours reaches where its work is known."""
    about = {key: note[key] for key in ABOUT if key in note}
    about |= {"device": _device_name(device), "driver": _driver(device)}
    if "multiply_adds" in note or "bytes" in note:
        peaks = _peaks(device, note.get("dtype", "float32"))
        least, bound = peaks.least(note.get("multiply_adds", 0), note.get("bytes", 0))
        about |= {"roofline": least / seconds, "bound": bound, "peaks": peaks.model_dump()}
    return about


@cache
def _peaks(device: torch.device, dtype: str) -> Peaks:
    return peaks_of(Machine(device, DTYPES[dtype], 0))


def _driver(device: torch.device) -> str:
    """torch, and what it drives a GPU with."""
    if device.type != "cuda":
        return f"torch {torch.__version__}"
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    version = Path("/proc/driver/nvidia/version")
    words = version.read_text().split() if version.is_file() else []
    number = next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
    return f"torch {torch.__version__}, {toolkit}, driver {number}"


def _record(benchmark: Any, recorded: Any, rounds: int) -> None:
    """Hand pytest-benchmark the times already taken, through a clock that tells them."""
    now = 0.0

    def clock() -> float:
        return now

    def step() -> None:
        nonlocal now
        now += next(recorded)

    benchmark._timer = clock
    benchmark.pedantic(step, rounds=rounds, iterations=1)


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


@pytest.fixture
def peak_memory(device) -> Callable[[Callable[[], Any]], int]:
    """Bytes a call takes above what is resident before it (the Linux kernel's own high mark)."""

    def measure(function: Callable[[], Any]) -> int:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return torch.cuda.max_memory_allocated() - before
        _give_back()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again at VmRSS
        except OSError:
            pytest.skip("peak memory on the CPU needs /proc/self/clear_refs")
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before

    return measure


def _give_back() -> None:
    """Freed memory that malloc keeps resident would be taken again unseen: back to the system."""
    with contextlib.suppress(AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
