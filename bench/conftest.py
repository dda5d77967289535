"""Fair races between contenders, on the CPU or, where there is one, the GPU.

Contenders run interleaved, round by round, each from cold caches, so that drifting clocks and
warm memory favour none; quantiles are reported, not means.  On a GPU time is taken with events.
``pytest bench`` runs everything here; ``--benchmark-json`` keeps the rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # table.py is no test

from table import Row, markdown, save  # noqa: E402

ROWS: list[Row] = []
COLD_BYTES = 256 << 20  # larger than any last-level cache
HERE = Path(__file__).parent


def pytest_configure(config):
    if config.option.markexpr == "not bench and not slow":  # plain `pytest`; here they are meant
        config.option.markexpr = ""


def pytest_addoption(parser):
    parser.addoption("--keep", metavar="FILE", help="keep the races' medians in this JSON file")


def pytest_terminal_summary(terminalreporter, config):
    """One table of all races, whatever was captured before."""
    if ROWS:
        terminalreporter.write_line("\n" + markdown(ROWS) + "\n")
        if config.getoption("--keep"):
            save(ROWS, Path(config.getoption("--keep")))


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
    The row of ``ours`` is what pytest-benchmark records; the others and ``note`` go into its
    extra_info.
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
        recorded = iter(seconds[ours])
        benchmark.extra_info.update(note or {})
        benchmark.extra_info["device"] = _device_name(device)
        benchmark.extra_info["seconds"] = {n: result.median(n) for n in contenders}
        benchmark.extra_info["ratio"] = {n: result.ratio(n, ours) for n in contenders if n != ours}
        _record(benchmark, recorded, rounds)
        told = {name: str(value) for name, value in (note or {}).items()}
        taken = {name: len(times) for name, times in seconds.items()}
        medians = {name: result.median(name) for name in contenders}
        ROWS.append(Row(benchmark.name, _device_name(device), ours, medians, taken, told))
        with capsys.disabled():
            print(f"\n{benchmark.name} on {_device_name(device)}")
            print(result.table(ours))
            for name, value in (note or {}).items():
                print(f"  {name}: {value}")
        return result

    return run


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
