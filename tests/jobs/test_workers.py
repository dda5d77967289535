"""``sweep --workers``: processes that share a run's categories, and one of them that dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import call, masks

from circuitcore.bundled import IMAGES
from circuitcore.engine.prepare import prepare
from circuitcore.engine.splits import give_on
from circuitcore.inputs.read import read_inputs
from circuitcore.jobs import workers
from circuitcore.machine.device import machine
from circuitcore.machine.scratch import inherited
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.runs.folder import open_run

SMALL = (
    "--scoring-images", "1", "--extraction-images", "3", "--heldout-images", "3",
    "--levels", "0,0.4", "--threshold", "0.3", "--device", "cpu", "--quiet",
)  # fmt: skip
CATEGORIES = ("Trouser", "Bag")
HERE = Path("/proc/self/task")
needs_children = pytest.mark.skipif(not HERE.exists(), reason="Linux lists a process's children")


def begin(folder, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "circuitcore.cli.main", "sweep", *CATEGORIES, *SMALL]
    return subprocess.Popen(
        [*command, "--out", str(folder), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code: int) -> str:
    _, said = process.communicate(timeout=600)
    assert process.returncode == code, said[-3000:]
    assert "Traceback" not in said
    return said


def children(process, count: int) -> list[int]:
    """Process numbers of the workers, as soon as there are ``count``."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        found = [int(pid) for pid in listed.read_text().split()]
        if len(found) == count:
            return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    raise AssertionError("no workers")


def wait_for_the_end(pids: list[int]) -> None:
    until = time.monotonic() + 120
    while any(running(pid) for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Not ended; ended counts also where no parent has asked how."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return said.rpartition(")")[2].split()[0] != "Z"


@needs_children
def test_one_that_is_killed_takes_nothing_of_the_others(tmp_path):
    folder, alone = tmp_path / "workers", tmp_path / "alone"
    process = begin(folder, "--workers", "2")
    os.kill(children(process, 2)[0], signal.SIGKILL)
    said = finish(process, code=4)
    assert "1 of 2 workers failed" in said and "worker-0 on cpu: killed by signal 9" in said
    (path,) = open_run(folder).units().values()
    written = path.stat().st_mtime_ns
    call("sweep", *CATEGORIES, *SMALL, "--workers", 2, "--out", folder)
    assert path.stat().st_mtime_ns == written
    call("sweep", *CATEGORIES, *SMALL, "--out", alone)
    found, expected = masks(folder), masks(alone)
    assert found.keys() == expected.keys() and len(found) > 2
    assert all((found[name] == expected[name]).all() for name in expected)


@needs_children
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_workers_too(number, code, tmp_path):
    process = begin(tmp_path, "--workers", "2")
    pids = children(process, 2)
    process.send_signal(number)
    finish(process, code)
    wait_for_the_end(pids)


@needs_children
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    process = begin(tmp_path, "--workers", "2")
    pids = children(process, 2)
    process.kill()
    finish(process, -signal.SIGKILL)
    wait_for_the_end(pids)
    said = [log.read_text() for log in (tmp_path / "logs").iterdir()]
    assert len(said) == 2 and all("terminated" in each for each in said)  # and not done


def test_what_all_share_fails_before_any_worker(tmp_path):
    images = tmp_path / "images"
    shutil.copytree(IMAGES, images)
    bad = sorted((images / "val" / "Bag").iterdir())[0]
    bad.write_bytes(b"no image")
    said = [
        call("sweep", *CATEGORIES, *SMALL, "--images", images, "--out", tmp_path / f"{count}",
             "--workers", count, code=3).stderr
        for count in (1, 2)
    ]  # fmt: skip
    assert f"{bad}: not a readable image" in said[0]
    assert said[1] == said[0]
    assert not (tmp_path / "2" / "logs").exists()


def test_what_fails_every_worker_alike_is_said_once(tmp_path):
    """A budget that is enough for one process, and half of it for none."""
    sweep = "sweep", *CATEGORIES, *SMALL, "--out", tmp_path
    refused = call(*sweep, "--memory", "2M", code=5).stderr
    least = int(refused.partition("--memory ")[2].partition("M")[0])
    said = call(*sweep, "--memory", f"{least}M", "--workers", 2, code=5).stderr
    assert said.count(f"give --memory {least}M or more") == 1
    assert (tmp_path / "logs" / "worker-1.log").exists()


WATCH = """
import os
from PIL import Image

own = Image.open

def watched(file, *rest, **more):
    with open(os.environ["OPENED"], "a") as opened:
        opened.write(f"{os.getpid()} {file}\\n")
    return own(file, *rest, **more)

Image.open = watched
"""


def test_workers_decode_scoring_images_alone(tmp_path, monkeypatch):
    """The others were decoded by the process that started them."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENED", str(tmp_path / "opened"))
    call("sweep", *CATEGORIES, *SMALL, "--workers", 2, "--out", tmp_path / "run")
    opened = [line.split(" ") for line in (tmp_path / "opened").read_text().splitlines()]
    assert len({process for process, _ in opened}) == 2
    assert len(opened) == 2 and all("/train/" in name for _, name in opened)


def test_what_was_inherited_is_what_was_made_and_stays_so():
    options = Options(
        scoring_images=1, extraction_images=3, heldout_images=3, levels="0,0.4", device="cpu"
    )
    inputs = read_inputs(options)
    first = prepare(inputs, options, machine(options), Silent())
    give_on(first.scratch, [first.extraction, first.heldout])
    text = first.scratch.described()
    for number in first.scratch.descriptors:  # `inherited` closes what it is given
        text = text.replace(f"[{number},", f"[{os.dup(number)},")
    second = prepare(inputs, options, machine(options), Silent(), inherited(text))
    for one, other in ((first.extraction, second.extraction), (first.heldout, second.heldout)):
        assert (one.pixels == other.pixels).all() and one.features.keys() == other.features.keys()
        assert torch.equal(one.labels, other.labels) and torch.equal(one.logits, other.logits)
        assert all((one.features[name] == other.features[name]).all() for name in one.features)
    second.extraction.pixels[:] = 0  # in its own copy
    assert first.extraction.pixels.any()


def test_devices_go_round_and_memory_is_shared(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    ampere = SimpleNamespace(major=8, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: ampere)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr("circuitcore.machine.device.free_host_memory", lambda: 5000)

    def devices(count, **given):
        options = Options(**given)
        return workers._devices(options, machine(options), count)

    assert devices(2) == [("cuda:0", None), ("cuda:1", None)]
    assert devices(3) == [("cuda:0", 400), ("cuda:1", None), ("cuda:0", 400)]
    assert devices(2, gpu=1) == [("cuda:1", 400)] * 2
    assert devices(4, device="cpu") == [("cpu", 1000)] * 4
    assert devices(2, device="cpu", memory=8 << 20) == [("cpu", 4 << 20)] * 2
