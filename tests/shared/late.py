"""A machine that sees the files of others late, as on a shared file system that keeps names.

What this process places itself it sees at once.  Time is counted in looks, so nothing waits.
"""

import contextlib
import errno
import io
import os
from pathlib import Path

import pytest


class Late:
    """Hides what was in ``folder`` and matches ``pattern`` until it was looked for ``looks`` times.

    ``looks`` None: for good.
    """

    def __init__(self, folder: Path, pattern: str, looks: int | None) -> None:
        self.left = {str(path): looks for path in folder.glob(pattern)}
        self.looked = 0

    def hides(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike) or os.fspath(path) not in self.left:
            return False
        name = os.fspath(path)
        self.looked += 1
        if self.left[name] is None:
            return True
        self.left[name] -= 1
        if self.left[name] < 0:
            del self.left[name]
            return False
        return True

    def placed(self, path: object) -> None:
        self.left.pop(os.fspath(path), None)


@contextlib.contextmanager
def late(folder: Path, pattern: str, looks: int | None):
    """What this process sees of a folder meanwhile."""
    seen = Late(folder, pattern, looks)
    stat, opened, replace = os.stat, io.open, os.replace

    def absent(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def late_stat(path, *others, **named):
        return absent(path) if seen.hides(path) else stat(path, *others, **named)

    def late_open(path, *others, **named):
        return absent(path) if seen.hides(path) else opened(path, *others, **named)

    def own_replace(source, target, **named):
        replace(source, target, **named)
        seen.placed(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", late_stat)
        patch.setattr(io, "open", late_open)
        patch.setattr(os, "replace", own_replace)
        yield seen
