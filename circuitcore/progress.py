"""How long work tells what it is doing; the command line draws it, a library call need not."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a long piece of work."""

    def start(self, what: str, total: int) -> None:
        """A new piece of work of ``total`` units begins."""

    def advance(self, count: int = 1, detail: str = "") -> None:
        """``count`` more units are done; ``detail`` says what comes next."""

    def note(self, message: str) -> None:
        """Something the user should know, as one line."""


class Silent:
    """Says nothing."""

    def start(self, what: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""
