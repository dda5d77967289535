"""Progress on stderr: a bar on a terminal, a line every 30 s elsewhere, nothing with --quiet.

Both say how many units are done of how many, at what rate, how long the rest takes and when it ends
(`circuitcore.progress.Pace`), from the first moment on: while libraries, model and images are
loaded, and while CPU kernels are compiled.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from circuitcore.cli.terminal.layout import cells, controls, shortened
from circuitcore.errors import CircuitcoreError
from circuitcore.progress import Pace, Progress, Silent, clock, told_of_compiling

if TYPE_CHECKING:
    from rich.text import Text

EVERY_SECONDS = 30.0
LOADING = "loading libraries, model and images"
COMPILING = "compiling CPU kernels: once on this machine, about half a minute in all"
WIDEST, NARROWEST = 32, 8  # cells of a bar
A_DETAIL = 6  # cells of one, at least


def progress(quiet: bool) -> Bar | Lines | Quiet:
    """What fits stderr; a context manager that cleans up behind itself."""
    if quiet:
        return Quiet()
    return Bar() if controls(sys.stderr) else Lines()


class _Closing:
    """Speaks from the beginning of a with block to its end."""

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


class _Telling(_Closing):
    """Keeps the pace of the work at hand; tells of kernels as they are compiled."""

    def __init__(self) -> None:
        self._pace = Pace("", 0)
        self._compiled = 0
        self._told = ExitStack()

    def __enter__(self) -> Progress:
        self._told.enter_context(told_of_compiling(self._compiling))
        self.start(LOADING, 0)
        return super().__enter__()

    def start(self, what: str, total: int) -> None:
        """Begin a new piece of work; ``total`` 0: how much it is is not known."""
        self._pace = Pace(what, total)

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Count."""
        self._pace.count(count, detail)

    def note(self, message: str) -> None:
        """One line, now."""
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Hear of no more compiling."""
        self._told.close()

    def _compiling(self, name: str) -> None:
        self._compiled += 1
        if self._compiled == 1:
            self.note(COMPILING)
        self._pace.count(0, f"compiling {name}")


class Lines(_Telling):
    """Notes at once; progress as one line every ``every`` seconds, from a thread of its own."""

    def __init__(self, every: float = EVERY_SECONDS) -> None:
        super().__init__()
        self._every = every
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._folder: Path | None = None

    def follow(self, folder: Path) -> None:
        """While circuits are made, lines are of the whole run in ``folder``: of all its workers."""
        self._folder = folder

    def start(self, what: str, total: int) -> None:
        """Begin a new piece of work."""
        super().start(what, total)
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._thread.start()

    def line(self) -> str:
        """The state in one line."""
        pace = self._pace
        if self._folder is not None and pace.what == "circuits":
            with suppress(CircuitcoreError, OSError, KeyError):  # gone, or spoiled meanwhile
                return _run_line(self._folder)
        of = f" {pace.done}/{pace.total}" if pace.total else ""
        detail = f", {pace.detail}" if pace.detail else ""
        said = f", {pace.said()}" if pace.said() else ""
        return f"{pace.what}{of}{detail}, {pace.elapsed:.0f} s{said}"

    def close(self) -> None:
        """Stop the thread."""
        super().close()
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
    from circuitcore.runs.working.watching import watched

    return line(watched(open_run(folder)))


class Bar(_Telling):
    """One line at the foot of a terminal, drawn anew; it disappears when the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Any = None

    def start(self, what: str, total: int) -> None:
        """Begin a new piece of work on the same line."""
        super().start(what, total)
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            fine = (sys.stderr.encoding or "").lower().startswith("utf")
            self._live = Live(
                get_renderable=lambda: drawn(self._pace, console.width, fine),
                console=console,
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,  # it has the result
            )
            self._live.start()

    def note(self, message: str) -> None:
        """One line above the bar."""
        if self._live is None:
            super().note(message)
        else:
            self._live.console.print(message, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        super().close()
        if self._live is not None:
            self._live.stop()


def drawn(pace: Pace, width: int, fine: bool) -> Text:
    """The state on one line of ``width`` columns; ``fine``: line-drawing letters can be shown."""
    from rich.text import Text

    count = f" {pace.done:,}/{pace.total:,}" if pace.total else ""
    said = f" {pace.said() or clock(pace.elapsed)}"
    room = width - 1 - cells(pace.what + count)
    if len(said) > room:
        said = said.partition(", ends")[0]
    room -= len(said) + 1
    own = min(cells(pace.detail), max(room - NARROWEST - 2, 0))
    detail = f" {shortened(pace.detail, own)}" if own >= min(A_DETAIL, cells(pace.detail)) else ""
    cut = min(room - cells(detail), WIDEST)
    done, rest = _bar(pace, cut, fine) if cut >= NARROWEST else ("", "")
    text = Text(shortened(pace.what, width - 1), no_wrap=True, overflow="crop")
    text.append(f" {done}" if done or rest else "", "bar.complete").append(rest, "bar.back")
    text.append(count, "progress.download").append(said, "progress.remaining")
    text.append(detail, "dim").truncate(max(width - 1, 0))
    return text


def _bar(pace: Pace, width: int, fine: bool) -> tuple[str, str]:
    """What is done and what is not; where the total is not known, a mark that goes to and fro."""
    full, empty = ("\u2501", "\u2500") if fine else ("#", "-")
    if pace.total:
        whole = min(round(width * pace.done / pace.total), width)
        return full * whole, empty * (width - whole)
    place = abs(int(pace.elapsed * 8) % (2 * width - 2) - (width - 1))
    return "", empty * place + full + empty * (width - 1 - place)
