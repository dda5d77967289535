"""How long work tells what it is doing: to nobody, to a callable, to a notebook.

The command line draws bars and lines of its own (`circuitcore.cli.progress`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Protocol

from circuitcore.errors import UsageError

Told = Callable[[str, int, int, str], object]
"""told(what, done, total, detail): the state of a piece of work, whenever it changes"""


class Progress(Protocol):
    """Receives the state of a long piece of work."""

    def start(self, what: str, total: int) -> None:
        """A new piece of work of ``total`` units begins."""

    def advance(self, count: int = 1, detail: str = "") -> None:
        """``count`` more units are done; ``detail`` says what comes next."""

    def note(self, message: str) -> None:
        """Something the user should know, as one line."""


@dataclass
class Pace:
    """How fast a piece of work goes, and when it will be over.

    ``began`` and ``counted`` (when the last unit was done): seconds of a clock that never jumps.
    ``total`` 0: not known.
    """

    what: str
    total: int
    began: float = field(default_factory=lambda: time.monotonic())
    counted: float = 0.0
    done: int = 0
    detail: str = ""

    def count(self, count: int, detail: str = "") -> None:
        """So many more units are done."""
        self.done += count
        self.detail = detail or self.detail
        if count:
            self.counted = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float | None:
        """Units a second; None in the first second and before the first unit."""
        took = self.counted - self.began
        return self.done / took if self.done and took >= 1 else None

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate; None where that is not known."""
        if self.rate is None or not self.total:
            return None
        since = time.monotonic() - self.counted
        return max((self.total - self.done) / self.rate - since, 0.0)

    def said(self) -> str:
        """``4.2/min, 1:05 left, ends 14:32``; "" where the rate is not known, or of one unit."""
        if self.rate is None or self.total == 1:
            return ""
        if self.left is None or self.done >= self.total:
            return rate_in_words(self.rate)
        return f"{rate_in_words(self.rate)}, {clock(self.left)} left, ends {end_of(self.left)}"


def rate_in_words(rate: float) -> str:
    """Units a second, a minute or an hour, whichever gives a number of one or more."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        value = rate * seconds
        if value >= 1 or unit == "h":
            return f"{value:,.0f}/{unit}" if value >= 100 else f"{value:.1f}/{unit}"
    raise AssertionError("hours are the last")


def clock(seconds: float) -> str:
    """``0:09``, ``12:05``, ``3:12:05``; days before that where there are."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def end_of(seconds: float) -> str:
    """When so many seconds will be over, by the clock on the wall: ``14:32``, ``Tue 14:32``."""
    now, then = time.time(), time.time() + seconds
    today = time.localtime(now)[:3] == time.localtime(then)[:3]
    form = "%H:%M" if today else "%a %H:%M" if seconds < 6 * 86400 else "%d %b %H:%M"
    return time.strftime(form, time.localtime(then))


_compiling: list[Callable[[str], None]] = []


@contextmanager
def told_of_compiling(told: Callable[[str], None]) -> Iterator[None]:
    """Within the block, ``told(name)`` as each kernel begins to be compiled, in any thread."""
    _compiling.append(told)
    try:
        yield
    finally:
        _compiling.remove(told)


def compiling(name: str) -> None:
    """A kernel begins to be compiled: tell whoever wants to know."""
    for told in tuple(_compiling):
        told(name)


class Silent:
    """Shows nothing; notes go to the logger ``circuitcore``, which prints none unless asked to."""

    def start(self, what: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Log it."""
        logging.getLogger("circuitcore").info(message)


class Called(Silent):
    """Tells a callable, as `Told` says; notes go to the logger."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._pace = Pace("", 0)

    def start(self, what: str, total: int) -> None:
        """Tell it that nothing is done yet."""
        self._pace = Pace(what, total)
        self._told(what, 0, total, "")

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Tell it how much is done."""
        self._pace.count(count, detail)
        self._told(self._pace.what, self._pace.done, self._pace.total, detail)


class Notebook(Called):
    """A bar below the cell that runs, in whatever shows HTML; it goes when the work is done."""

    def __init__(self) -> None:
        super().__init__(self._draw)
        self._shown: Any = None

    def _draw(self, what: str, done: int, total: int, detail: str) -> None:
        from IPython.display import HTML, display

        html = (
            f"<progress max={total} value={done}></progress> "
            f"{escape(what)} {done}/{total} {self._pace.said()} {escape(detail)}"
        )
        if self._shown is None:
            self._shown = display(HTML(html), display_id=True)
        else:  # an empty one in its place once this part is done
            self._shown.update(HTML("" if done >= total else html))


def follow(progress: Progress, folder: Path) -> None:
    """Tell one that can watch a run folder (it has ``follow``) where the run is; others nothing."""
    if (told := getattr(progress, "follow", None)) is not None:
        told(folder)


def progress_of(given: Progress | Told | None) -> Progress:
    """What a library call tells: what it was given; else a notebook's bar, else nothing."""
    if given is None:
        return Notebook() if _in_notebook() else Silent()
    if hasattr(given, "start"):
        return given  # type: ignore[return-value]
    if not callable(given):
        raise UsageError(f"progress: something to call, not {given!r}")
    return Called(given)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"
