"""How long work tells what it is doing: to nobody, to a callable, to a notebook.

The command line draws bars and lines of its own (`circuitcore.cli.progress`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
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
        self._what, self._done, self._total = "", 0, 0

    def start(self, what: str, total: int) -> None:
        """Tell it that nothing is done yet."""
        self._what, self._done, self._total = what, 0, total
        self._told(what, 0, total, "")

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Tell it how much is done."""
        self._done += count
        self._told(self._what, self._done, self._total, detail)


class Notebook(Called):
    """A bar below the cell that runs, in whatever shows HTML; it goes when the work is done."""

    def __init__(self) -> None:
        super().__init__(self._draw)
        self._shown: Any = None

    def _draw(self, what: str, done: int, total: int, detail: str) -> None:
        from IPython.display import HTML, display

        html = (
            f"<progress max={total} value={done}></progress> "
            f"{escape(what)} {done}/{total} {escape(detail)}"
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
