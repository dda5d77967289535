"""Who is at work on a run: each worker keeps ``RUN/workers/SYSTEM-PID-RANDOM.json`` while it lives.

The file is written anew at every beat and at every category, and deleted at the end.  It is for
those who watch and for `jobs.claims`; no result depends on it, so a disk that refuses it is ignored
and nothing is forced out to it.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from circuitcore.machine.files import (
    long_untouched,
    owner_gone,
    owner_name,
    read_sealed,
    sealed,
    temporary_for,
)

WORKERS, CLAIMS = "workers", "claims"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0  # without a beat: longer than any file system keeps old attributes
LOOK_SECONDS = 5.0  # the most that one look counts: one who slept has not watched


@dataclass(frozen=True)
class Working:
    """A worker: ``of`` categories to do, ``category`` in work, ``memory_bytes`` at most so far.

    ``seconds``: since it began its first category, of a clock that never jumps; ``started``: when
    its process began to prepare, in seconds since 1970.
    """

    name: str
    host: str
    device: str
    of: int
    started: float
    done: int = 0
    failed: int = 0
    category: str = ""
    memory_bytes: int = 0
    seconds: float = 0.0
    beat: int = 0


class Presence:
    """This worker's file, kept up to date by a thread while the block runs."""

    def __init__(self, folder: Path, device: str, of: int) -> None:
        self.state = Working(owner_name(), platform.node(), device, of, time.time())
        self.path = folder / WORKERS / f"{self.state.name}.json"
        self._began: float | None = None
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)

    def __enter__(self) -> Presence:
        self.tell()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(timeout=1)
        with self._lock:
            remove(self.path)

    def tell(self, **changes: Any) -> None:
        """Change what the file says, and beat."""
        with self._lock:
            if self._end.is_set():
                return
            if self._began is None and "category" in changes:
                self._began = time.monotonic()  # what is prepared once does not slow it down
            seconds = 0.0 if self._began is None else time.monotonic() - self._began
            beat = self.state.beat + 1
            self.state = replace(self.state, seconds=seconds, beat=beat, **changes)
            place_quickly(self.path, sealed(asdict(self.state)))

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            self.tell()


def place_quickly(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, unless power is cut; a disk that refuses is ignored."""
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            os.write(opened, content)
        finally:
            os.close(opened)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file of this kind, and its folder once that is empty."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def workers(folder: Path) -> Iterator[tuple[Path, Working]]:
    """What the workers of a run said last, in the order of their names; torn files are left out."""
    known = {field.name for field in fields(Working)}
    for path in sorted((folder / WORKERS).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            found = {name: value for name, value in read_sealed(path).items() if name in known}
            yield path, Working(**found)


def beating(path: Path) -> bool:
    """Whether a worker's file is of a process that lives: by its number here, else by its age.

    Age is by the clocks of two machines: good enough to be shown, not to take work away.
    """
    gone = owner_gone(path.stem)
    if gone is not None:
        return not gone
    with suppress(OSError):
        return abs(time.time() - path.stat().st_mtime) < SILENT_SECONDS
    return False


class Silences:
    """For how long others have been seen not to beat.

    Beats are compared with one another and never with a clock: what was written where clocks are
    set otherwise counts alike, and time in which nobody looked does not count.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[bytes, float, float]] = {}

    def seconds(self, name: str) -> float:
        """Seconds of looking at the worker's file without a change in it."""
        said = b""
        with suppress(OSError):
            said = (self._folder / WORKERS / f"{name}.json").read_bytes()
        now = time.monotonic()
        before, silent, looked = self._seen.get(name, (said, 0.0, now))
        silent = silent + min(now - looked, LOOK_SECONDS) if said == before else 0.0
        self._seen[name] = said, silent, now
        return silent


def sweep_gone(folder: Path) -> None:
    """Delete the files of workers that are gone, and what they had claimed."""
    for path in [*(folder / WORKERS).glob("*.json"), *(folder / CLAIMS).glob("*")]:
        with suppress(OSError):
            name = path.stem if path.parent.name == WORKERS else path.read_text(errors="replace")
            gone = owner_gone(name)
            # a claim is as old as its category, however long that takes: its worker beats
            aged = gone is None and path.parent.name == WORKERS and long_untouched(path)
            if gone or aged:
                remove(path)
