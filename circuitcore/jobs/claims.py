"""Which category a worker takes next, so that two at once seldom do the same one.

``RUN/claims/KEY`` holds the name of the worker that is at category KEY, and is made by whoever is
first (O_EXCL).  It is good as long as that worker beats (`runs.working.presence`): one whose
process on this machine has ended, or that was watched not to beat for `SILENT_SECONDS`, loses it to
whoever renames the claim away first.  Claims are advice: without them, or with a wrong one, work is
done twice, and a category's file is the same whoever writes it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from circuitcore.inputs.categories import Category
from circuitcore.machine.files import owner_gone, read_sealed, temporary_for
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.working.presence import CLAIMS, SILENT_SECONDS, WORKERS, Silences, remove

POLL_SECONDS = 0.5
ATTEMPTS = 5  # at a folder that another worker deletes, being empty, the moment it is made


class Claims:
    """The categories left to one worker, ``me``; ``passed`` is told those that others finished.

    ``failed`` holds, by category, what others said of those that failed meanwhile.
    """

    def __init__(
        self,
        run: RunFolder,
        me: str,
        left: Sequence[Category],
        passed: Callable[[Category], None],
    ) -> None:
        self.run, self.me, self._left, self._passed = run, me, list(left), passed
        self.failed: dict[Category, str] = {}
        self._held: set[Path] = set()
        self._silences = Silences(run.folder)
        self._failed_before = {c: self._failure(c) for c in left}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for path in list(self._held):
            self._release(path)

    def take(self, wait: bool) -> Category | None:
        """The next category that is neither done nor another's, claimed; None if there is none.

        ``wait``: until those of others are done, have failed, or are left to us.
        """
        while True:
            for category in list(self._left):
                if self._over(category):
                    self._left.remove(category)
                elif self._claim(self._path(category)):
                    self._left.remove(category)
                    if not self._over(category):  # done between the look and the claim
                        return category
                    self.release(category)
            if not self._left or not wait:
                return None
            time.sleep(POLL_SECONDS)

    def release(self, category: Category) -> None:
        """Give a category's claim up: it is done, or failed."""
        self._release(self._path(category))

    def _release(self, path: Path) -> None:
        if path in self._held:
            self._held.discard(path)
            if _holder(path) == self.me:  # else it was taken from us
                remove(path)

    def _path(self, category: Category) -> Path:
        return self.run.folder / CLAIMS / self.run.path(category.index).stem

    def _over(self, category: Category) -> bool:
        """Whether another worker did it, or tried and failed, since we began."""
        if self.run.path(category.index).exists():
            self._passed(category)
            return True
        said = self._failure(category)
        if not said or said == self._failed_before[category]:
            return False
        self.failed[category] = said[0]
        self._passed(category)
        return True

    def _failure(self, category: Category) -> tuple[str, float] | None:
        path = self.run.folder / "failed" / f"{self.run.path(category.index).stem}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_sealed(path)
            return str(found["error"]), float(found["time"])
        return None

    def _claim(self, path: Path) -> bool:
        """Whether it is ours now: also where no claim can be written at all."""
        for _ in range(ATTEMPTS):
            try:
                opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                if not self._taken_over(path):
                    return False
                continue
            except FileNotFoundError:
                with suppress(OSError):
                    path.parent.mkdir(exist_ok=True)
                continue
            except OSError:
                return True
            self._held.add(path)
            with suppress(OSError):
                try:
                    os.write(opened, self.me.encode())
                finally:
                    os.close(opened)
            return True
        return True

    def _taken_over(self, path: Path) -> bool:
        """Remove a claim whose worker is gone; whether that was done, by us or another."""
        holder = _holder(path)
        if holder is None:
            return True
        if not owner_gone(holder) and self._silences.seconds(holder or path.name) < SILENT_SECONDS:
            return False
        aside = temporary_for(path)
        try:
            os.rename(path, aside)
        except OSError:
            return False
        moved = _holder(aside)
        if moved == holder:
            remove(self.run.folder / WORKERS / f"{holder}.json")
        else:  # the claim of one who took it over before us
            with suppress(OSError):
                os.link(aside, path)
        with suppress(OSError):
            aside.unlink()
        return moved == holder


def own_order(categories: Sequence[Category]) -> list[Category]:
    """The categories in an order of this worker's own, so that those who join seldom meet."""
    return random.SystemRandom().sample(list(categories), len(categories))


def _holder(path: Path) -> str | None:
    """Who holds a claim, "" while it is being written; None where there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""
