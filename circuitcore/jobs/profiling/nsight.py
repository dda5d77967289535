"""Read what Nsight Systems saw: the SQLite file of ``nsys export --type sqlite``.

Its tables are those of NVIDIA's user guide (SQLite schema reference); a table that nothing was
written to is missing from the file.  A kernel of a replayed graph is traced back to the moment its
node was captured (`CUDA_GRAPH_NODE_EVENTS`), inside the range of its layer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from circuitcore.errors import InputError
from circuitcore.jobs.profiling.trace import Activity, Mark, Range, Trace
from circuitcore.kernels.spans import COLOURS, WORK

CATEGORY, MARK, PUSHED, DOMAIN = 33, 34, 59, 75  # eventType of NVTX_EVENTS
NAME = "circuitcore"
SECOND = 1e9  # of nanoseconds
PROCESS = 0xFFFFFF000000  # the process in a globalTid, which is also its globalPid's
NUMBERS = ("int64Value", "uint64Value", "int32Value", "uint32Value")


def read_nsight(path: Path) -> Trace:
    """The trace in an exported file.  Raises InputError where it holds no ranges of circuitcore."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            file.row_factory = sqlite3.Row
            trace = _Reader(file).trace()
    except sqlite3.Error as error:
        raise InputError(f"{path}: not a file of 'nsys export --type sqlite' ({error})") from error
    if not trace.ranges:
        raise InputError(f"{path}: no NVTX ranges of circuitcore in it: record with --trace=nvtx")
    return trace


def device_name(path: Path) -> str:
    """The first GPU of a recorded machine by its own name; empty where none is told."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            found = file.execute("SELECT name FROM TARGET_INFO_GPU ORDER BY id").fetchone()
    except sqlite3.Error:
        return ""
    return str(found[0]) if found else ""


class _Reader:
    def __init__(self, file: sqlite3.Connection) -> None:
        self.file = file
        named = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        self.tables = {row[0] for row in named}
        self.zero = 0  # nanoseconds, where seconds count from: digits are lost far from it
        if "NVTX_EVENTS" in self.tables:
            (first,) = file.execute("SELECT MIN(start) FROM NVTX_EVENTS").fetchone()
            self.zero = first or 0
        self.strings = dict(file.execute("SELECT id, value FROM StringIds").fetchall())

    def at(self, nanoseconds: int) -> float:
        """A moment in seconds."""
        return (nanoseconds - self.zero) / SECOND

    def rows(self, table: str, where: str = "1") -> Iterator[dict[str, Any]]:
        """The rows of a table that may be missing, in the order of their start."""
        if table in self.tables:
            found = self.file.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY start")
            yield from (dict(row) for row in found)

    def said(self, row: dict[str, Any]) -> str:
        """The text of an NVTX event, registered or not."""
        return str(row.get("text") or self.strings.get(row.get("textId"), ""))

    def trace(self) -> Trace:
        trace = Trace()
        self._ranges(trace)
        asked = {
            (row["globalTid"] & PROCESS, row["correlationId"]): row
            for row in self.rows("CUPTI_ACTIVITY_KIND_RUNTIME")
        }
        for kind in ("KERNEL", "MEMCPY", "MEMSET"):
            for row in self.rows(f"CUPTI_ACTIVITY_KIND_{kind}"):
                call = asked.get(((row.get("globalPid") or 0) & PROCESS, row["correlationId"]))
                trace.activities.append(self._activity(kind, row, call))
        self._captured(trace)
        return trace

    def _ranges(self, trace: Trace) -> None:
        """Ranges and marks of the domain; a range without an end was open when recording ended."""
        domains, kinds = set(), {}
        for row in self.rows("NVTX_EVENTS", f"eventType = {DOMAIN}"):
            if self.said(row) == NAME:
                domains.add((row["globalTid"] & PROCESS, row["domainId"]))
        for row in self.rows("NVTX_EVENTS", f"eventType = {CATEGORY}"):
            place = row["globalTid"] & PROCESS, row["domainId"]
            if place in domains:
                kinds[*place, row["category"]] = self.said(row)
        ended = "SELECT MAX(MAX(start), COALESCE(MAX(end), 0)) FROM NVTX_EVENTS"
        (last,) = self.file.execute(ended).fetchone() if "NVTX_EVENTS" in self.tables else (0,)
        for row in self.rows("NVTX_EVENTS", f"eventType IN ({MARK}, {PUSHED})"):
            thread, place = row["globalTid"], (row["globalTid"] & PROCESS, row["domainId"])
            kind = kinds.get((*place, row["category"]))
            number = next((row[n] for n in NUMBERS if row.get(n) is not None), None)
            start = self.at(row["start"])
            if kind == WORK and number is not None:
                trace.marks.append(Mark(start, thread, self.said(row), number))
            elif kind in COLOURS:
                end = self.at(last if row["end"] is None else row["end"])
                trace.ranges.append(Range(start, end, thread, kind, self.said(row), number))

    def _activity(self, kind: str, row: dict[str, Any], call: dict[str, Any] | None) -> Activity:
        name = f"[{kind.lower()}]"
        if kind == "KERNEL":
            name = self.strings.get(row["shortName"]) or self.strings.get(row["demangledName"], "?")
        thread, at = (None, 0.0) if call is None else (call["globalTid"], self.at(call["start"]))
        start, end = self.at(row["start"]), self.at(row["end"])
        return Activity(start, end, name, thread, at, row.get("graphNodeId"))

    def _captured(self, trace: Trace) -> None:
        """Where nodes were captured; what is replayed are clones, of clones maybe."""
        original: dict[int, int] = {}
        for row in self.rows("CUDA_GRAPH_NODE_EVENTS"):
            node, before = row["graphNodeId"], row["originalGraphNodeId"]
            if before is None:
                trace.captured.setdefault(node, (row["globalTid"], self.at(row["start"])))
            else:
                original[node] = before
        for node in original:
            source = node
            while source in original and original[source] != source:
                source = original[source]
            if source in trace.captured:
                trace.captured[node] = trace.captured[source]
