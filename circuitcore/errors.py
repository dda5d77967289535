"""Errors a user can mend, each with the exit code of its kind.

Messages say what is wrong, where, and how to mend it; the command line prints them without a
traceback.  Anything else that escapes is our bug (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CircuitcoreError(Exception):
    """Base of every error that is not a bug of circuitcore."""

    exit_code = 1


class UsageError(CircuitcoreError):
    """A command, option or category that does not exist or does not fit."""

    exit_code = 2


class InputError(CircuitcoreError):
    """Bad input: a model, image folder or run folder that cannot be used as it is."""

    exit_code = 3


class PartialError(CircuitcoreError):
    """Some units are done, some are not; running again goes on from there."""

    exit_code = 4


class DeviceError(CircuitcoreError):
    """No such device, or out of memory on it."""

    exit_code = 5


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the known names nearest to ``name``: ``; did you mean 'a' or 'b'?``."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.5)
    if not found:
        return ""
    return "; did you mean " + " or ".join(repr(lowered[f]) for f in found) + "?"
