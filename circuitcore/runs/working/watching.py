"""How far a run is, over all its workers, from the files in its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcore.errors import InputError
from circuitcore.runs.folder import MANIFEST, RunFolder, open_run
from circuitcore.runs.paths import HOME
from circuitcore.runs.working.presence import Working, beating, workers


@dataclass(frozen=True)
class Watched:
    """A run at one instant; ``workers`` are those that live, ``gone`` left their file and ended.

    ``rate``: categories a second of all workers together; ``seconds_left``: until those that they
    are to do are done; both None while no worker has finished one.  ``memory_bytes``: the sum of
    the most that each living worker took so far.
    """

    folder: Path
    model: str
    categories: int
    done: int
    failed: int
    rate: float | None
    seconds_left: float | None
    memory_bytes: int
    workers: tuple[Working, ...]
    gone: int

    @property
    def left(self) -> int:
        """Categories that are neither done nor failed."""
        return max(self.categories - self.done - self.failed, 0)


def rate_of(worker: Working) -> float | None:
    """Categories a second; None while it has finished none."""
    return worker.done / worker.seconds if worker.done and worker.seconds > 0 else None


def watched(run: RunFolder) -> Watched:
    """How far a run is now.  Cost: a look at the name of each category's file."""
    paths = [run.path(c["index"]) for c in run.manifest["categories"]]
    there = {path.stem for path in paths if path.exists()}
    failures = {path.stem for path in (run.folder / "failed").glob("*.json")}
    failed = len(failures & {path.stem for path in paths} - there)
    found = [(beating(path), said) for path, said in workers(run.folder)]
    living = tuple(said for lives, said in found if lives)
    left = max(len(paths) - len(there) - failed, 0)
    # those of one sweep may be fewer than the run's, and those who join have the same in view
    theirs = min(left, sum(max(w.of - w.done - w.failed, 0) for w in living))
    rate = sum(rate_of(worker) or 0.0 for worker in living) or None
    return Watched(
        run.folder,
        run.manifest["model"]["name"],
        len(paths),
        len(there),
        failed,
        rate,
        theirs / rate if rate else None,
        sum(worker.memory_bytes for worker in living),
        living,
        len(found) - len(living),
    )


def list_runs(root: Path | None) -> list[dict[str, Any]]:
    """Run folders directly under ``root``, or where sweeps go that are given no folder.

    Of each: folder, model, categories done and in all, workers.
    """
    found = []
    for path in sorted((root or HOME).glob(f"*/{MANIFEST}")):
        try:
            seen = watched(open_run(path.parent))
        except (InputError, KeyError):
            continue
        found.append(
            {
                "folder": str(seen.folder),
                "model": seen.model,
                "done": seen.done,
                "categories": seen.categories,
                "workers": len(seen.workers),
            }
        )
    return found
