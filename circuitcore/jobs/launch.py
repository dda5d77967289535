"""Spread a run over GPUs through submitit: one job a GPU, here or under SLURM.

A job is `circuitcore.jobs.job.worker` on one shard; it commits circuits to the run folder and
returns only their number.  Doing a category twice is harmless, so jobs need not know of each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
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


def work(
    run: str,
    shard: int,
    shards: int,
    environment: Mapping[str, str] | None = None,
    memory: int | None = None,
) -> int:
    """One job: a shard of the run, without progress; returns how many categories it did.

    ``environment`` is set before torch is imported: the GPU to see and the threads to use.
    """
    os.environ.update(environment or {})
    from circuitcore.jobs.job import worker

    changes: dict[str, Any] = {} if memory is None else {"memory": memory}
    return worker(Path(run), shard, shards, Silent(), **changes)


def launch(run: Path, shards: int | None, where: Where, progress: Progress) -> list[int]:
    """Submit one job a shard, wait for all; the number of categories each of them did.

    ``shards``: None is one a GPU of this machine, or 1.  Jobs on a machine without one share its
    cores and memory.  Raises UsageError without submitit, and
    PartialError naming the jobs that failed: what they committed is kept, launching again goes on.
    """
    if where.cluster not in CLUSTERS:
        near = nearest(where.cluster, CLUSTERS)
        raise UsageError(f"--cluster {where.cluster}: one of {', '.join(CLUSTERS)}{near}")
    try:
        import submitit
    except ImportError:
        raise UsageError("launch needs submitit: pip install 'circuitcore[cluster]'") from None
    from circuitcore.runs.folder import open_run

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
    """One job a shard."""
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
    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(timeout_min=where.timeout)
    return [
        executor.submit(work, str(run), shard, count, *place)
        for shard, place in enumerate(_places(count, gpus))
    ]


def _places(count: int, gpus: int) -> list[tuple[dict[str, str], int | None]]:
    """Environment and memory budget of each of ``count`` jobs that run on this machine at once.

    The local executor would give every job GPU 0, or number GPUs as if all were visible here.
    """
    threads = str(max((os.cpu_count() or 1) // count, 1))
    shared = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads} if count > 1 else {}
    if not gpus:
        from circuitcore.machine.device import free_host_memory

        each = None if count == 1 else int(0.8 * free_host_memory()) // count
        return [(dict(shared), each)] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    names = visible.split(",")[:gpus]
    return [({**shared, "CUDA_VISIBLE_DEVICES": names[i % gpus]}, None) for i in range(count)]


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
