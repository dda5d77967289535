"""Spread a run over GPUs through submitit: one job a GPU, here or under SLURM.

A job is `circuitcore.run.worker` on one shard; it commits circuits to the run folder and returns
only their number.  Doing a category twice is harmless, so jobs need not know of each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcore.errors import PartialError, UsageError, nearest
from circuitcore.progress import Progress, Silent

CLUSTERS = ("auto", "local", "slurm")
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Where:
    """Where jobs run: ``timeout`` in minutes, ``cpus`` a job, ``partition`` of SLURM."""

    cluster: str = "auto"
    timeout: int = 1440
    partition: str | None = None
    cpus: int = 8


def work(run: str, shard: int, shards: int) -> int:
    """One job: a shard of the run, without progress; returns how many categories it did."""
    from circuitcore.run import worker

    return worker(Path(run), shard, shards, Silent())


def launch(run: Path, shards: int | None, where: Where, progress: Progress) -> list[int]:
    """Submit one job a shard, wait for all; the number of categories each of them did.

    ``shards``: None is one a GPU of this machine, or 1.  Raises UsageError without submitit, and
    PartialError naming the jobs that failed: what they committed is kept, launching again goes on.
    """
    if where.cluster not in CLUSTERS:
        near = nearest(where.cluster, CLUSTERS)
        raise UsageError(f"--cluster {where.cluster}: one of {', '.join(CLUSTERS)}{near}")
    try:
        import submitit
    except ImportError:
        raise UsageError("launch needs submitit: pip install 'circuitcore[cluster]'") from None
    from circuitcore.run import open_run

    open_run(run)  # a folder that is none is refused before any job is queued
    gpus = _gpus()
    count = shards or max(gpus, 1)
    jobs = _submit(submitit, run.resolve(), count, gpus, where)
    progress.note(f"{count} jobs submitted; their logs are in {run / 'logs'}")
    progress.start("jobs", count)
    waiting = set(range(count))
    while waiting:
        for i in [i for i in waiting if jobs[i].done()]:
            waiting.remove(i)
            progress.advance(1, f"job {jobs[i].job_id}")
        if waiting:
            time.sleep(POLL_SECONDS)
    return _collected(jobs, run)


def _submit(submitit: Any, run: Path, count: int, gpus: int, where: Where) -> list[Any]:
    """One job a shard.  The local executor gives every job GPU 0 unless told which to see."""
    logs = run / "logs"
    cluster = None if where.cluster == "auto" else where.cluster
    probe = submitit.AutoExecutor(folder=logs, cluster=cluster)
    if probe.cluster == "slurm":
        probe.update_parameters(
            timeout_min=where.timeout,
            cpus_per_task=where.cpus,
            gpus_per_node=1,
            name="circuitcore",
            **({"slurm_partition": where.partition} if where.partition else {}),
        )
        return list(probe.map_array(work, [str(run)] * count, range(count), [count] * count))
    jobs = []
    for shard in range(count):
        executor = submitit.LocalExecutor(folder=logs)
        seen = {"gpus_per_node": 1, "visible_gpus": (shard % gpus,)} if gpus else {}
        executor.update_parameters(timeout_min=where.timeout, **seen)
        jobs.append(executor.submit(work, str(run), shard, count))
    return jobs


def _collected(jobs: list[Any], run: Path) -> list[int]:
    done, failed = [], []
    for shard, job in enumerate(jobs):
        try:
            done.append(int(job.result()))
        except Exception as error:  # submitit wraps whatever the job raised
            last = str(error).strip().splitlines()[-1] if str(error).strip() else type(error)
            failed.append(f"  shard {shard} (job {job.job_id}): {last}")
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(jobs)} jobs failed; logs are in {run / 'logs'}:\n"
            + "\n".join(failed)
        )
    return done


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
