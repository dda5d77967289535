"""Read a trace of torch's profiler: the JSON that Perfetto and chrome://tracing open.

Ranges and marks of `kernels.spans` are there as operations named ``circuitcore|kind|payload|name``
(`recording.TorchDomain`), marks as ones that take no time.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuitcore.errors import InputError
from circuitcore.jobs.profiling.trace import OPERATION, Activity, Mark, Range, Trace
from circuitcore.kernels.spans import WORK

PREFIX = "circuitcore|"
TOLD = "circuitcore"  # the key of what is kept beside the events
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
ASKED = {"cuda_runtime", "cuda_driver"}
ON_HOST = {"cpu_op", "user_annotation"}


def read_chrome(path: Path) -> Trace:
    """The trace in a JSON file, gzipped or not.  Raises InputError where it holds none."""
    try:
        return _trace([event for event in _held(path)["traceEvents"] if event.get("ph") == "X"])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise InputError(f"{path}: no trace of torch's profiler ({error!r})") from error


def read_told(path: Path) -> dict[str, Any]:
    """What was kept beside the events of a trace that `read_chrome` reads; empty without any."""
    told = _held(path).get(TOLD, {})
    return told if isinstance(told, dict) else {}


def _held(path: Path) -> dict[str, Any]:
    held = path.read_bytes()
    found = json.loads(gzip.decompress(held) if path.suffix == ".gz" else held)
    return found if isinstance(found, dict) else {}


def _trace(events: list[dict[str, Any]]) -> Trace:
    trace = Trace()
    zero = min((event["ts"] for event in events), default=0)  # digits are lost far from it
    asked = {
        event["args"]["correlation"]: (int(event["tid"]), (event["ts"] - zero) / 1e6)
        for event in events
        if event.get("cat") in ASKED and "correlation" in event.get("args", {})
    }
    for event in events:
        start, name = (event["ts"] - zero) / 1e6, event["name"]
        end = (event["ts"] - zero + event.get("dur", 0)) / 1e6
        if event.get("cat") in ON_DEVICE:
            thread, at = asked.get(event.get("args", {}).get("correlation"), (None, 0.0))
            trace.activities.append(Activity(start, end, name, thread, at))
        elif event.get("cat") in ON_HOST:
            thread = int(event["tid"])
            for each in _told(start, end, thread, name):
                (trace.marks if isinstance(each, Mark) else trace.ranges).append(each)  # type: ignore[arg-type]
    return trace


def _told(start: float, end: float, thread: int, name: str) -> Iterator[Range | Mark]:
    """What an operation is: a range or mark of ours, or torch's own."""
    if not name.startswith(PREFIX):
        yield Range(start, end, thread, OPERATION, name)
        return
    _, kind, number, own = name.split("|", 3)
    if kind == WORK:
        yield Mark(start, thread, own, int(number))
    else:
        yield Range(start, end, thread, kind, own, int(number) if number else None)
