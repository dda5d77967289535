"""A shared file system may show another machine's files late: what must be there is waited for."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from circuitcore.errors import PartialError
from circuitcore.progress import Progress
from circuitcore.runs.folder import MANIFEST, RunFolder, open_run

VISIBLE_SECONDS = 60.0  # for which NFS may keep what it knew of a folder, by its defaults
POLL_SECONDS = 0.5


def wait_for(there: Callable[[], bool], what: str, folder: Path, progress: Progress) -> bool:
    """Wait until ``there()``, saying so once; False if it is not after `VISIBLE_SECONDS`."""
    until = time.monotonic() + VISIBLE_SECONDS
    if there():
        return True
    progress.note(f"{folder}: {what} cannot be seen from {platform.node()} yet; waiting")
    progress.start(f"waiting for {folder}", 0)
    while time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        with suppress(OSError):
            os.listdir(folder)  # has a file system look again that remembers what is not there
        if there():
            return True
    return False


def wait_for_run(folder: Path, progress: Progress) -> RunFolder:
    """Open a run folder as soon as its manifest is there.

    Raises PartialError where it does not come, InputError where it is damaged.
    """
    manifest = folder / MANIFEST
    if not wait_for(manifest.exists, f"its {MANIFEST}", folder, progress):
        raise PartialError(
            f"{folder}: no run folder (it has no {MANIFEST}) to be seen from {platform.node()} "
            f"in {VISIBLE_SECONDS:.0f} s: is it the folder that sweep made, on a disk that all "
            "machines share? Then run the same command again"
        )
    return open_run(folder)


def wait_for_units(run: RunFolder, progress: Progress) -> int:
    """How many categories of a run are neither done nor failed, as far as can be seen from here."""

    def absent() -> int:
        paths = [run.path(c["index"]) for c in run.manifest["categories"]]
        failed = run.folder / "failed"
        return sum(not (p.exists() or (failed / f"{p.stem}.json").exists()) for p in paths)

    wait_for(lambda: not absent(), "what its workers did", run.folder, progress)
    return absent()
