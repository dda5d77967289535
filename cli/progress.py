"""Progress on stderr: a bar on a terminal, a line every 30 s elsewhere, nothing with --quiet."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from circuitcore.errors import CircuitcoreError
from circuitcore.progress import Progress, Silent

EVERY_SECONDS = 30.0


def progress(quiet: bool) -> Bar | Lines | Quiet:
    """What fits stderr; a context manager that cleans up behind itself."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()


class _Closing:
    """Closes at the end of a with block."""

    def __enter__(self) -> Progress:
        return self  # type: ignore[return-value]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to clean up."""


class Quiet(_Closing, Silent):
    """Drops progress and notes."""


class Lines(_Closing):
    """Notes at once; progress as one line every ``every`` seconds, from a thread of its own."""

    def __init__(self, every: float = EVERY_SECONDS) -> None:
        self._every = every
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._what, self._detail, self._done, self._total = "", "", 0, 0
        self._began = time.monotonic()
        self._folder: Path | None = None

    def follow(self, folder: Path) -> None:
        """While circuits are made, lines are of the whole run in ``folder``: of all its workers."""
        self._folder = folder

    def start(self, what: str, total: int) -> None:
        """Begin a new piece of work."""
        self._what, self._detail, self._done, self._total = what, "", 0, total
        self._began = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._thread.start()

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Count; the thread speaks."""
        self._done += count
        self._detail = detail or self._detail

    def note(self, message: str) -> None:
        """One line, now."""
        print(message, file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state in one line."""
        if self._folder is not None and self._what == "circuits":
            with suppress(CircuitcoreError, OSError, KeyError):  # gone, or spoiled meanwhile
                return _run_line(self._folder)
        of = f" {self._done}/{self._total}" if self._total else ""
        detail = f", {self._detail}" if self._detail else ""
        return f"{self._what}{of}{detail}, {time.monotonic() - self._began:.0f} s"

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

    def _tell(self) -> None:
        while not self._stop.wait(self._every):
            self.note(self.line())


def _run_line(folder: Path) -> str:
    """What `watch` says of a run in one line.  Raises InputError, OSError."""
    from circuitcore.cli.cluster.watching import line
    from circuitcore.runs.folder import open_run
    from circuitcore.runs.watching import watched

    return line(watched(open_run(folder)))


class Bar(_Closing):
    """A rich bar for a terminal; it disappears when the work is done."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def start(self, what: str, total: int) -> None:
        """Begin a new piece of work on the same line."""
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", style="dim", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, detail="")

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, advance=count, **({"detail": detail} if detail else {}))

    def note(self, message: str) -> None:
        """One line above the bar."""
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
