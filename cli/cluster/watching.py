"""A run that is watched, as a table, as one line, or as JSON; all fit 80 columns."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcore.cli.tables import as_csv, counted, emit, plain, size, table

if TYPE_CHECKING:
    from circuitcore.runs.working.watching import Watched

NAME, HOST = 16, 12  # characters of a category's and of a machine's name that are shown


def show(run: Path, form: str, *, once: bool, every: float, terminal: bool) -> None:
    """Print how a run is, every so many seconds until it is over, or once.

    Over is also where no worker was seen for two minutes.
    Raises InputError where ``run`` is no run folder.
    """
    from circuitcore.runs.folder import open_run
    from circuitcore.runs.working.presence import SILENT_SECONDS
    from circuitcore.runs.working.watching import watched

    opened = open_run(run)
    seen, lines, alone = False, 0, 0.0
    while True:
        now = watched(opened)
        if form == "table" and terminal and not once and lines:
            emit(f"\x1b[{lines}F\x1b[0J")  # over what was shown last
        text = shown(now, form, whole=once or terminal)
        lines = text.count("\n")
        emit(text)
        over = now.left == 0 or seen or alone >= SILENT_SECONDS
        if once or (over and not now.workers):
            return
        seen, alone = seen or bool(now.workers), 0.0 if now.workers else alone + every
        time.sleep(every)


def shown(now: Watched, form: str, *, whole: bool) -> str:
    """One of the four formats; ``whole``: the table of its workers too, else one line."""
    if form == "json" or form == "jsonl":
        return json.dumps(document(now), indent=2 if form == "json" and whole else None) + "\n"
    if form == "csv":
        return as_csv([{k: v for k, v in document(now).items() if k != "workers_now"}])
    return _table(now) if whole else f"{line(now)}\n"


def document(now: Watched) -> dict[str, Any]:
    """A run at one instant for programs: seconds, bytes, categories a second."""
    from circuitcore.runs.working.watching import rate_of

    left = now.seconds_left
    return {
        "run": str(now.folder),
        "model": now.model,
        "categories": now.categories,
        "done": now.done,
        "failed": now.failed,
        "rate": now.rate,
        "seconds_left": left,
        "expected_end": None if left is None else time.time() + left,
        "memory_bytes": now.memory_bytes,
        "workers": len(now.workers),
        "gone": now.gone,
        "workers_now": [{**asdict(w), "rate": rate_of(w)} for w in now.workers],
    }


def line(now: Watched) -> str:
    """The whole run in at most 80 characters; devices and memory go where there is no room."""
    parts = [f"{now.done:,}/{now.categories:,} done"]
    if now.failed:
        parts.append(f"{now.failed:,} failed")
    if now.rate:
        parts += [f"{an_hour(now.rate)} an hour", _left(now)]
    crew, memory = counted(len(now.workers), "worker", "workers"), now.memory_bytes
    most = [f"{crew}{_devices(now)}", *([size(memory)] if memory else [])]
    name = plain(now.folder.resolve().name)
    room = 78 - min(len(name), NAME)
    said = next(
        (text for more in (most, most[:1], [crew]) if len(text := ", ".join(parts + more)) <= room),
        ", ".join(parts)[:room],
    )
    return f"{_cut(name, 78 - len(said))}: {said}"


def _devices(now: Watched) -> str:
    """`` on cuda:0`` where all workers are on one, else how many there are."""
    found = {(w.host, w.device) for w in now.workers}
    if len(found) == 1:
        return f" on {plain(now.workers[0].device)}"
    return f" on {len(found)} devices" if found else ""


def _table(now: Watched) -> str:
    from circuitcore.runs.working.watching import rate_of

    rows = [
        [
            f"{_cut(w.host, HOST)} {w.name.split('-')[1] if '-' in w.name else ''}",
            w.device,
            f"{w.done:,}",
            an_hour(rate_of(w)),
            size(w.memory_bytes) if w.memory_bytes else "NA",
            _cut(plain(w.category), NAME) if w.category else "preparing",
        ]
        for w in now.workers
    ]
    gone = f"; {now.gone} ended without a word" if now.gone else ""
    text = f"{line(now)}\n"
    if not rows:
        return f"{text}nobody is at work on it{gone}\n"
    headings = ["worker", "device", "done", "an hour", "memory", "at"]
    return f"{text}\n{table(headings, rows, left=2)}" + (f"{gone[2:]}\n" if gone else "")


def an_hour(rate: float | None) -> str:
    """Categories a second as categories an hour."""
    if rate is None:
        return "NA"
    hourly = 3600 * rate
    return f"{hourly:,.0f}" if hourly >= 100 else f"{hourly:.1f}"


def _left(now: Watched) -> str:
    """``35 min left``; a day or more as days and hours."""
    minutes = round((now.seconds_left or 0) / 60)
    if minutes < 1:
        return "under a minute left"
    if minutes < 120:
        return f"{minutes} min left"
    hours = round(minutes / 60)
    return f"{hours} h left" if hours < 48 else f"{hours // 24} d {hours % 24} h left"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 2]}.."
