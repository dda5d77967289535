"""33, 34 and 41: machines that share a folder and nothing else, and one without shared memory.

Hosts are namespaces of their own for names, processes and mounts: a number of a process there says
nothing here.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from command import call
from soak import Watched

from circuitcore.runs.folder import open_run
from circuitcore.runs.working.presence import workers

FEW = (
    "--scoring-images", "1", "--extraction-images", "3", "--heldout-images", "3",
    "--levels", "0,0.4,0.8", "--threshold", "0.3", "--device", "cpu", "--quiet",
)  # fmt: skip
WORKER = """
import sys
from circuitcore.jobs import claims
from circuitcore.runs.working import presence
presence.BEAT_SECONDS, claims.SILENT_SECONDS, claims.POLL_SECONDS = 0.2, 4, 0.2
{code}
from circuitcore.cli.main import run
sys.exit(run(["worker", {run!r}, "--quiet"]))
"""
STUCK = """
import time
from circuitcore.jobs import job
job._swept = lambda *_: time.sleep(1000)
"""


def unshared(*kinds: str, shell: str, arguments: list[str]) -> subprocess.Popen:
    """A process in namespaces of its own, begun by a line of shell."""
    command = ["unshare", *kinds, "sh", "-c", f'{shell} && exec "$@"', "sh", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def namespaces():
    try:
        done = subprocess.run(
            ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if done.returncode:
        pytest.skip(f"namespaces are made by root alone: {done.stderr.decode().strip()}")


@pytest.fixture
def host():
    """``host(name, run, code)``: a worker on another machine; all are gone at the end."""
    begun = []

    def start(name, run, code=""):
        worker = [sys.executable, "-P", "-c", WORKER.format(run=str(run), code=code)]
        kinds = ("--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        begun.append(unshared(*kinds, shell=f"hostname {name}", arguments=worker))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def until(true, what: str) -> None:
    end = time.monotonic() + 200
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_33_two_hosts_share_a_run_and_one_takes_over_what_the_other_died_at(host, tmp_path):
    run = tmp_path / "run"
    call("sweep", "Trouser", "--out", run, *FEW)
    first = host("first", run, STUCK)
    until(lambda: [w for _, w in workers(run) if w.category], "the first to begin")
    (claim,) = (run / "claims").iterdir()
    others, seen = [host(name, run) for name in ("second", "third")], Watched(run)
    until(lambda: len({w.host for _, w in workers(run)}) == 3, "three hosts")
    assert {w.host for _, w in workers(run)} == {"first", "second", "third"}
    until(lambda: len(open_run(run).units()) == 9, "all but one")
    seen.look([])
    time.sleep(1)  # for others to look at a claim whose worker beats
    assert claim.exists() and claim.name not in seen.units
    os.kill(first.pid, signal.SIGKILL)
    said = [other.communicate(timeout=200)[1] for other in others]
    assert [other.returncode for other in others] == [0, 0], said
    seen.look([])
    assert claim.name in seen.units and seen.again == [] and len(seen.units) == 10
    call("verify", run)


def test_workers_need_no_shared_memory(tmp_path):
    """``/dev/shm`` of a container may be missing, full or read-only."""
    arguments = [sys.executable, "-P", "-m", "circuitcore.cli.main", "sweep", "Trouser", "Bag",
                 "--workers", "2", "--out", str(tmp_path / "run"), *FEW]  # fmt: skip
    none = "mount -t tmpfs -o ro,size=4k none /dev/shm"
    process = unshared("--mount", shell=none, arguments=arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    call("sweep", "Trouser", "Bag", "--out", tmp_path / "here", *FEW)
    there, here = (open_run(tmp_path / name).records() for name in ("run", "here"))
    for one, other in zip(there, here, strict=True):
        assert one.circuit.model_dump(exclude={"file"}) == other.circuit.model_dump(
            exclude={"file"}
        )
