"""Spread a run over worker processes of this machine: one a GPU in turn, or the CPU's cores shared.

Each is `circuitcore.jobs.worker`, which commits circuits to the run folder; that is all they
share, so one that dies takes nothing of the others with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from circuitcore.engine.splits import give_on
from circuitcore.errors import CircuitcoreError, DeviceError, InputError, PartialError, UsageError
from circuitcore.extraction.opened import prepared_in
from circuitcore.inputs.categories import Category
from circuitcore.inputs.read import Inputs
from circuitcore.machine.device import Machine, empty_caches, memory_budget
from circuitcore.machine.meter import return_freed_memory
from circuitcore.machine.scratch import Scratch
from circuitcore.options import Options
from circuitcore.progress import Progress
from circuitcore.runs.folder import RunFolder

POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0  # between asking a worker to stop and killing it
KINDS = {kind.exit_code: kind for kind in (CircuitcoreError, UsageError, InputError, DeviceError)}


class Job(BaseModel):
    """``categories``: their folders (two may have one name); ``memory``: bytes, None to measure;
    ``shared``: the parent's arrays, as `Scratch.described` says them.
    """

    run: Path
    categories: list[str]
    device: str
    memory: int | None
    shared: str


@dataclass(frozen=True)
class Worker:
    """A process, its device and the file of what it said."""

    process: subprocess.Popen[bytes]
    device: str
    log: Path

    def said(self) -> str:
        """Its message, or how it ended where it left none."""
        code = self.process.returncode
        if code < 0:
            return f"killed by signal {-code}"
        _, error, message = self.log.read_text(errors="replace").rpartition("error: ")
        return message.strip() if error else f"exit code {code}, see {self.log}"


def spread(
    run: RunFolder,
    inputs: Inputs,
    options: Options,
    on: Machine,
    chosen: Sequence[Category],
    progress: Progress,
) -> None:
    """Extract what is missing of the chosen categories in ``options.workers`` processes.

    Returns once they are done.  Images are decoded and the unpruned network is run here, once for
    all workers.
    Raises the workers' own error where all failed alike and none committed anything, else
    PartialError naming those that failed: what is committed is kept, running again goes on.
    However this process ends, no worker outlives it for long.
    """
    missing = {c.index: c for c in chosen if not run.path(c.index).exists()}
    if len(missing) < len(chosen):
        done = len(chosen) - len(missing)
        progress.note(f"{run.folder}: {done} of {len(chosen)} categories are done already")
    if not missing:
        return
    shared = _share(run, inputs, options, on, progress)
    count = min(options.workers, len(missing))
    shares = [list(missing.values())[i::count] for i in range(count)]
    places = zip(shares, _devices(options, on, len(shares)), strict=True)
    progress.start("circuits", len(missing))
    workers: list[Worker] = []
    try:
        with _signals_held():  # else a worker begun that very instant would be missed by `_stop`
            for number, (share, (device, memory)) in enumerate(places):
                threads = max(torch.get_num_threads() // len(shares), 1)
                log = run.folder / "logs" / f"worker-{number}.log"
                process = _start(run, share, device, memory, threads, log, shared)
                workers.append(Worker(process, device, log))
        while any(worker.process.poll() is None for worker in workers):
            time.sleep(POLL_SECONDS)
            for unit in [unit for unit in missing if run.path(unit).exists()]:
                progress.advance(1, missing.pop(unit).name)
    finally:
        _stop(workers)
    committed = any(run.path(c.index).exists() for share in shares for c in share)
    _raise_failures(workers, committed, run.folder / "logs")


def _raise_failures(workers: Sequence[Worker], committed: bool, logs: Path) -> None:
    """Raise what failed workers said, if any did; ``committed``: whether anything is done."""
    failed = [worker for worker in workers if worker.process.returncode]
    if not failed:
        return
    codes = {worker.process.returncode for worker in failed}
    alike = not committed and len(failed) == len(workers) and len(codes) == 1
    if alike and codes <= KINDS.keys():
        raise KINDS[codes.pop()](failed[0].said())
    listed = "\n".join(f"  {w.log.stem} on {w.device}: {w.said()}" for w in failed)
    raise PartialError(
        f"{len(failed)} of {len(workers)} workers failed; what is committed is kept, the same "
        f"command goes on; their logs are in {logs}:\n{listed}"
    )


def _share(
    run: RunFolder, inputs: Inputs, options: Options, on: Machine, progress: Progress
) -> Scratch:
    """Decode and run unpruned what all workers need; nothing but its files is kept here.

    Cost: `prepare`, whatever the number of workers.
    """
    prepared = prepared_in(run, inputs, options, on, progress)
    give_on(prepared.scratch, [prepared.extraction, prepared.heldout])
    scratch = prepared.scratch
    del prepared
    return_freed_memory()
    empty_caches()
    return scratch


@contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM that come inside the block are answered at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of this thread's business
        return
    came: list[int] = []
    own = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
    for caught in came:
        signal.raise_signal(caught)


def _devices(options: Options, on: Machine, count: int) -> list[tuple[str, int | None]]:
    """Device and memory budget (None: the worker's own measure) of each of ``count`` workers."""
    gpus = torch.cuda.device_count() if options.device == "auto" and options.gpu is None else 0
    names = [f"cuda:{i % gpus}" if gpus else str(on.device) for i in range(count)]
    shared = {name: names.count(name) for name in names}
    return [
        (name, memory_budget(options, torch.device(name)) // shared[name])
        if shared[name] > 1
        else (name, options.memory)
        for name in names
    ]


def _start(
    run: RunFolder,
    share: Sequence[Category],
    device: str,
    memory: int | None,
    threads: int,
    log: Path,
    shared: Scratch,
) -> subprocess.Popen[bytes]:
    job = Job(
        run=run.folder.resolve(),
        categories=[category.folder for category in share],
        device=device,
        memory=memory,
        shared=shared.described(),
    )
    command = [sys.executable, "-P", "-m", "circuitcore.jobs.worker", job.model_dump_json()]
    counts = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as said:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # nothing is written: it ends when this process does
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=os.environ | counts,
            pass_fds=shared.descriptors,
        )


def _stop(workers: Sequence[Worker]) -> None:
    """Ask those still running to stop, kill them if they do not."""
    for worker in workers:
        worker.process.terminate()  # nothing where it has ended
    until = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def end_with_parent() -> None:
    """Terminate this worker as soon as the process that started it is gone, however it went."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
