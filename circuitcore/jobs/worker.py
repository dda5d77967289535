"""One worker process of a run, as `workers.spread` starts them.

    python -m circuitcore.jobs.worker JOB      JOB: a `workers.Job` as JSON

Commits circuits to the run folder and nothing else; exit codes and messages are the command's.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from circuitcore.errors import BUG, said_of
from circuitcore.machine.process import settle, settled
from circuitcore.progress import Silent


class Said(Silent):
    """Notes go to stderr, which the parent keeps in a file."""

    def note(self, message: str) -> None:
        """One line."""
        print(message, file=sys.stderr, flush=True)


def main(text: str) -> int:
    """Do a job; its exit code."""
    settle()
    try:
        from circuitcore.jobs.job import worker
        from circuitcore.jobs.workers import Job

        job = Job.model_validate_json(text)
        changes: dict[str, Any] = {"device": job.device, "gpu": None}
        if job.memory is not None:
            changes["memory"] = job.memory
        worker(job.run, 0, 1, Said(), job.categories, job.shared, **changes)
    except (KeyboardInterrupt, Exception) as error:
        code, message = said_of(error)
        if code == BUG:
            traceback.print_exception(error)
        print(message, file=sys.stderr, flush=True)
        return settled(code)
    return settled(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
