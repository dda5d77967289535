"""Spread a run over GPUs through submitit: one job a GPU, here or under SLURM.

A job is `circuitcore.jobs.job.worker` on one shard, then on what is left of others; it commits
circuits to the run folder and returns only their number.  A job that its scheduler preempts, or
whose time is up, drops the category it is at and is queued again.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitcore.errors import PartialError, UsageError, nearest
from circuitcore.machine.process import stop_soon
from circuitcore.machine.room import cores
from circuitcore.progress import Progress, Silent, follow

if TYPE_CHECKING:
    from circuitcore.runs.folder import RunFolder

CLUSTERS = ("auto", "local", "slurm")
POLL_SECONDS = 2.0
REQUEUES = 100  # of a job whose time is up
ARRAY = 1000  # jobs of one array where the scheduler does not say: SLURM's own default


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
    """One job: its shard of the run, then what others left; how many categories it did.

    ``environment`` is set before torch is imported: the GPU to see and the threads to use.
    """
    os.environ.update(environment or {})
    from circuitcore.jobs.job import worker

    changes: dict[str, Any] = {} if memory is None else {"memory": memory}
    return worker(Path(run), shard, shards, Silent(), others=True, **changes)


class Job:
    """`work` as submitit runs it: ended soon when it is told to, and begun anew when requeued."""

    def __call__(self, *arguments: Any) -> int:
        """Do it."""
        stop_soon()
        return work(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        """What is queued after a preemption: the same, which goes on where the run is by then."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def launch(run: Path, shards: int | None, where: Where, progress: Progress) -> list[int]:
    """Submit one job a shard, wait for all; the number of categories each of them did.

    ``shards``: None is one a GPU of this machine, or 1.  Jobs on a machine without one share its
    cores and memory.  Raises UsageError without submitit, and
    PartialError naming the jobs that failed, or where what they did is not to be seen from here
    even after a while: what they committed is kept, launching again goes on.
    """
    submitit, opened, count, gpus = _checked(run, shards, where)
    jobs, local = _submit(submitit, run.resolve(), count, gpus, where)
    progress.note(f"{count} jobs submitted; their logs are in {run / 'logs'}")
    follow(progress, run)
    try:
        _wait(jobs, opened, progress)
    except BaseException:
        if local:  # those of a scheduler go on without us
            for job in jobs:
                job.cancel()
        raise
    done = _collected(jobs, run)
    from circuitcore.jobs.visible import wait_for_units

    if absent := wait_for_units(opened, progress):
        raise PartialError(
            f"{run}: all jobs ended well, and the files of {absent} categories are not to be seen "
            "from here: is it a disk that all machines share? Then run the same command again"
        )
    return done


def script(run: Path, shards: int | None, where: Where) -> str:
    """What `launch` would submit, as text; nothing is written.  Raises what `launch` raises."""
    submitit, _, count, gpus = _checked(run, shards, where)
    slurm = where.cluster == "slurm" or (where.cluster == "auto" and shutil.which("srun"))
    if not slurm:
        lines = []
        for shard, (environment, memory) in enumerate(_places(count, gpus)):
            words = [f"{name}={value}" for name, value in sorted(environment.items())]
            words += ["circuitcore", "worker", shlex.quote(str(run)), "--shard", f"{shard}/{count}"]
            lines.append(" ".join(words + (["--memory", str(memory)] if memory else [])))
        return "".join(f"{line}\n" for line in lines)

    class Dry(submitit.SlurmExecutor):  # type: ignore[misc, name-defined]
        """One that does not ask for srun: nothing is run."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    texts = []
    for size in _arrays(count):
        executor = Dry(folder=run.resolve() / "logs", max_num_timeout=REQUEUES)
        given = {k.removeprefix("slurm_"): v for k, v in _parameters(where).items()}
        executor.update_parameters(**executor._convert_parameters(given))
        if size > 1:
            executor.parameters["map_count"] = size
        texts.append(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return "\n".join(texts)


def _checked(run: Path, shards: int | None, where: Where) -> tuple[Any, RunFolder, int, int]:
    """submitit, the run, how many jobs and how many GPUs are here: before any job is queued."""
    if where.cluster not in CLUSTERS:
        near = nearest(where.cluster, CLUSTERS)
        raise UsageError(f"--cluster {where.cluster}: one of {', '.join(CLUSTERS)}{near}")
    try:
        import submitit
    except ImportError:
        raise UsageError("launch needs submitit: pip install 'circuitcore[cluster]'") from None
    from circuitcore.runs.folder import open_run

    opened = open_run(run)  # a folder that is none is refused
    gpus = _gpus()
    return submitit, opened, shards or max(gpus, 1), gpus


def _wait(jobs: list[Any], run: RunFolder, progress: Progress) -> None:
    """Until all jobs are over; what is counted are categories, whoever does them."""
    done = len(run.units())
    progress.start("circuits", len(run.manifest["categories"]) - done)
    waiting = list(jobs)
    while waiting:
        waiting = [job for job in waiting if not job.done()]
        now = len(run.units())
        progress.advance(now - done, f"{len(waiting)} jobs")
        done = now
        if waiting:
            time.sleep(POLL_SECONDS)


def _submit(
    submitit: Any, run: Path, count: int, gpus: int, where: Where
) -> tuple[list[Any], bool]:
    """One job a shard; whether they run on this machine."""
    logs = run / "logs"
    cluster = None if where.cluster == "auto" else where.cluster
    try:
        probe = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=REQUEUES)
    except RuntimeError as error:
        raise UsageError(f"--cluster {where.cluster}: {error}") from None
    if probe.cluster == "slurm":
        probe.update_parameters(**_parameters(where))
        jobs: list[Any] = []
        for size in _arrays(count):
            shards = range(len(jobs), len(jobs) + size)
            jobs += probe.map_array(Job(), [str(run)] * size, shards, [count] * size)
        return jobs, False
    executor = submitit.LocalExecutor(folder=logs)
    executor.update_parameters(timeout_min=where.timeout)
    return [
        executor.submit(Job(), str(run), shard, count, *place)
        for shard, place in enumerate(_places(count, gpus))
    ], True


def _parameters(where: Where) -> dict[str, Any]:
    """What a job asks SLURM for, in submitit's words."""
    return {
        "timeout_min": where.timeout,
        "cpus_per_task": where.cpus,
        "gpus_per_node": 1,
        "name": "circuitcore",
        "slurm_additional_parameters": {"requeue": True},
        **({"slurm_partition": where.partition} if where.partition else {}),
    }


def _arrays(count: int) -> list[int]:
    """Sizes of the arrays that ``count`` jobs come in, none above the scheduler's limit."""
    limit = _array_limit()
    return [min(limit, count - first) for first in range(0, count, limit)]


def _array_limit() -> int:
    try:
        said = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.M)
    # the largest number is one less, and an array may be switched off: one job then, by itself
    return max(int(found[1]) - 1, 1) if found else ARRAY


def _places(count: int, gpus: int) -> list[tuple[dict[str, str], int | None]]:
    """Environment and memory budget of each of ``count`` jobs that run on this machine at once.

    The local executor would give every job GPU 0, or number GPUs as if all were visible here.
    """
    threads = str(max(cores() // count, 1))
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
