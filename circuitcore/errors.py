"""Errors a user can mend, each with the exit code of its kind.

Messages say what is wrong, where, and how to mend it; the command line prints them without a
traceback.  Anything else that escapes is our bug (exit code 1).
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class CircuitcoreError(Exception):
    """Base of every error that is not a bug of circuitcore."""

    exit_code = 1


class UsageError(CircuitcoreError):
    """A command, option or category that does not exist or does not fit."""

    exit_code = 2


class OptionsError(UsageError):
    """Options that do not fit: ``problems`` holds (option or "", message, value) of each."""

    def __init__(self, problems: list[tuple[str, str, Any]]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(
            f"{spelled(name)}: {message} (got {value!r})" if name else message
            for name, message, value in self.problems
        )


class InputError(CircuitcoreError):
    """Bad input: a model, image folder or run folder that cannot be used as it is."""

    exit_code = 3


class PartialError(CircuitcoreError):
    """Some units are done, some are not; running again goes on from there."""

    exit_code = 4


class DeviceError(CircuitcoreError):
    """No such device, or out of memory on it."""

    exit_code = 5


def one_line(text: object) -> str:
    """A name on one line: what cannot be printed, or would move a terminal's cursor, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def spelled(name: str) -> str:
    """An option as typed on the command line."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the known names nearest to ``name``: ``; did you mean 'a' or 'b'?``."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.5)
    if not found:
        return ""
    return "; did you mean " + " or ".join(repr(lowered[f]) for f in found) + "?"


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
BUG, PARTLY, DEVICE, INTERRUPTED = 1, 4, 5, 130


def said_of(error: BaseException) -> tuple[int, str]:
    """Exit code and message of what ended a process: out of memory and a disk that gives up have
    codes of their own; what is none of ours is our bug.
    """
    if isinstance(error, CircuitcoreError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command goes on where it stopped"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return DEVICE, f"error: out of memory: {error}; try a smaller --memory"
    if isinstance(error, OSError) and error.errno in DISK:
        where = f": {error.filename}" if error.filename else ""
        said = f"{error.strerror}{where}; mend that and run the same command again"
        return PARTLY, f"error: {said}"
    return BUG, "this is a bug of circuitcore; please report it with the lines above"
