"""What a scheduler is given and does: the script of an array, limits, signals, requeueing."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command import call

from circuitcore.jobs import launch as launching
from circuitcore.jobs.launch import Job, Where, _submit, script

submitit = pytest.importorskip("submitit")

SBATCH = """#!/bin/sh
cp "$1" "$SCRIPTS/$(ls "$SCRIPTS" | wc -l)"
echo "Submitted batch job $(ls "$SCRIPTS" | wc -l)"
"""
CONFIG = """#!/bin/sh
echo "Configuration data as of 2026-01-01T00:00:00"
echo "MaxArraySize            = 4"
"""


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands on PATH; the folder of the scripts that sbatch was given."""
    scripts, commands = tmp_path / "scripts", tmp_path / "bin"
    scripts.mkdir()
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n"), ("scontrol", CONFIG)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SCRIPTS", str(scripts))
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    return scripts


def test_the_script_that_is_printed_is_the_one_that_is_submitted(scheduler, small, tmp_path):
    """Arrays of at most as many as the scheduler takes; every shard once."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_bytes((small.folder / "manifest.json").read_bytes())
    said = call("launch", run, "--shards", 7, "--dry-run", "--partition", "gpu", "--timeout", 90)
    assert [path.name for path in run.iterdir()] == ["manifest.json"]  # nothing was written
    jobs, local = _submit(submitit, run.resolve(), 7, 0, Where(partition="gpu", timeout=90))
    given = [(scheduler / name).read_text() for name in sorted(os.listdir(scheduler))]
    assert said.stdout == "\n".join(given)
    assert [line for text in given for line in text.splitlines() if "--array" in line] == [
        "#SBATCH --array=0-2%3", "#SBATCH --array=0-2%3",
    ]  # fmt: skip
    for text in given:
        for flag in ("requeue", "signal=USR2@90", "gpus-per-node=1", "time=90", "partition=gpu"):
            assert f"#SBATCH --{flag}\n" in text
    assert not local and len(jobs) == 7
    shards = [job.submission().args[1:3] for job in jobs]
    assert shards == [(shard, 7) for shard in range(7)]
    again = jobs[3].submission().function.checkpoint(*jobs[3].submission().args)
    assert isinstance(again.function, Job) and again.args == jobs[3].submission().args


def test_without_a_scheduler_the_commands_are_printed(small, monkeypatch):
    monkeypatch.setattr(launching, "_gpus", lambda: 2)
    monkeypatch.setattr(launching, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    said = script(small.folder, 2, Where("local"))
    assert said.splitlines() == [
        f"CUDA_VISIBLE_DEVICES={gpu} NUMBA_NUM_THREADS=4 OMP_NUM_THREADS=4 circuitcore worker "
        f"{small.folder} --shard {shard}/2"
        for shard, gpu in enumerate((4, 6))
    ]


# A job that never ends, whose answer to SIGUSR2 is submitit's kind: it ends by an exception
ENDLESS = """
import signal, sys, time
from circuitcore.machine.process import stop_soon

def requeue(number, frame):
    print("queued again", flush=True)
    sys.exit(-1)

signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGUSR2, requeue)
stop_soon()
print("ready", flush=True)
while True:
    try:
        time.sleep(0.05)
    except SystemExit:
        if sys.argv[1] == "lost":
            continue
        raise
"""


@pytest.mark.parametrize(
    ("number", "how", "code", "said"),
    [
        (signal.SIGTERM, "", 143, ""),
        (signal.SIGUSR2, "", 255, "queued again\n"),
        pytest.param(signal.SIGUSR2, "lost", 143, "queued again\n", marks=pytest.mark.slow),
    ],
)
def test_a_job_ends_when_it_is_told_to(number, how, code, said):
    job = subprocess.Popen(
        [sys.executable, "-P", "-c", ENDLESS, how], stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    rest, _ = job.communicate(timeout=120)
    assert (job.returncode, rest) == (code, said)


@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_told_to_stop_gives_its_claim_up(number, small, tmp_path):
    """What it is at is dropped: others need not wait for its silence."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("manifest.json", "images.parquet"):
        (run / name).write_bytes((small.folder / name).read_bytes())
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "circuitcore.cli.main", "worker", run],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 300
    while not any((run / "claims").glob("*")):
        assert worker.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    assert len(list((run / "workers").glob("*.json"))) == 1
    worker.send_signal(number)
    said = worker.communicate(timeout=300)[1]
    assert worker.returncode == 143 and "Traceback" not in said
    assert not (run / "claims").exists() and not (run / "workers").exists()
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_jobs_on_this_machine_do_a_run(small, tmp_path, monkeypatch):
    run = tmp_path / "run"
    call(*small.arguments[:1], "Bag", *small.levels, "--out", run)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    said = call("launch", run, "--shards", 2, "--cluster", "local").stdout
    counts = [int(line.split()[2]) for line in said.splitlines()]
    assert sum(counts) == 9 and len(counts) == 2
    assert len(list(run.glob("units/*/*.safetensors"))) == 10
    assert not (run / "claims").exists()
