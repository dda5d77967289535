"""Three workers of one run, in forks of one process; the first is killed at its first category.

    python joining.py RUN CATEGORY...

Prints what happened: who committed what, in order, and what claims and workers are left.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from killed import ended

from circuitcore.jobs import claims, job
from circuitcore.progress import Silent
from circuitcore.runs import folder as folders

COMMITS = "commits.jsonl"
PATIENCE = 300


def until(true, what: str) -> None:
    """Wait for it.  Raises AssertionError where it never comes."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def forked(number: int, run: Path, wanted: list[str], stuck: bool = False) -> int:
    """A worker that joins; ``stuck``: it never gets through its first category."""
    if child := os.fork():
        return child
    code = 1
    try:
        own = job.commit

        def commit(run, found) -> None:
            own(run, found)
            with (run.folder / COMMITS).open("a") as log:
                log.write(json.dumps([number, found.record.category]) + "\n")

        job.commit = commit
        if stuck:
            job._swept = lambda *_: time.sleep(10 * PATIENCE)
        claims.POLL_SECONDS = 0.05
        done = job.worker(run, 0, 1, Silent(), wanted, others=True)
        (run / f"done-{number}").write_text(str(done))
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def commits(run: Path) -> list[list]:
    try:
        return [json.loads(line) for line in (run / COMMITS).read_text().splitlines()]
    except FileNotFoundError:
        return []


def main(run: Path, wanted: list[str]) -> None:
    first = forked(0, run, wanted, stuck=True)
    until(lambda: any((run / "claims").glob("*")), "a claim")
    (claim,) = (run / "claims").glob("*")
    others = [forked(number, run, wanted) for number in (1, 2)]
    until(lambda: len(commits(run)) == len(wanted) - 1, "all but one")
    before = commits(run)
    at = [path.name for path in (run / "claims").glob("*")]
    until(lambda: len(list((run / "workers").glob("*.json"))) == 3, "three workers")
    os.kill(first, signal.SIGKILL)
    codes = [ended(first), *(ended(child) for child in others)]
    at_last = [str(p.relative_to(run)) for n in ("claims", "workers") for p in run.glob(f"{n}/**")]
    opened = folders.open_run(run)
    taken = [c["name"] for c in opened.manifest["categories"]
             if opened.path(c["index"]).stem == claim.name]  # fmt: skip
    print(json.dumps({
        "before": before, "commits": commits(run), "claimed": [claim.name in at, *taken],
        "codes": codes, "left": at_last,
        "done": [int((run / f"done-{n}").read_text()) for n in (1, 2)],
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
