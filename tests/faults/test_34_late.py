"""34: another machine's files are seen late, or never; nothing asks for a lock."""

import shutil
import sys

import pytest
from command import call, masks
from late import late

from circuitcore.jobs import launch as launching
from circuitcore.jobs import visible
from circuitcore.runs.folder import open_run


class Submitit:
    """Jobs that say they did 2 categories each, and what they did is another machine's."""

    class AutoExecutor:
        cluster = "local"

        def __init__(self, **_) -> None:
            pass

        def update_parameters(self, **_) -> None:
            pass

        def submit(self, *_):
            return self

        job_id = 1

        def done(self) -> bool:
            return True

        def result(self) -> int:
            return 2

    LocalExecutor = AutoExecutor


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """Two categories that another machine did; waiting takes no time."""
    monkeypatch.setattr(visible, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(visible, "VISIBLE_SECONDS", 30)
    monkeypatch.setitem(sys.modules, "submitit", Submitit)
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    return shutil.copytree(small.folder, tmp_path / "run")


def test_a_run_that_is_seen_late_is_worked_on(run):
    with late(run, "manifest.json", 9) as seen:
        said = call("worker", run, "Bag")
    assert seen.looked > 9 and said.stdout == "0 categories\n"
    assert "manifest.json cannot be seen" in said.stderr
    assert "1 of 1 categories are done already" in said.stderr


def test_a_run_that_is_never_seen_is_no_work_done(run, monkeypatch):
    monkeypatch.setattr(visible, "VISIBLE_SECONDS", 0.05)
    with late(run, "manifest.json", None):
        said = call("worker", run, code=4)
    assert "no run folder" in said.stderr and said.stdout == ""


def test_what_is_not_seen_is_done_twice_and_is_the_same(run):
    before = masks(run)
    with late(run, "units/*/*", None):
        assert call("worker", run, "Bag", "--quiet").stdout == "1 categories\n"
    after = masks(run)
    assert after.keys() == before.keys()
    assert all((after[name] == before[name]).all() for name in before)
    assert call("verify", run, "--sample", 0).stdout.startswith("intact")


def as_if_all(run) -> None:
    """The run's manifest names what is done alone, as if it were all there is to do."""
    from circuitcore.machine.files import read_sealed, sealed

    done = open_run(run).units()
    manifest = read_sealed(run / "manifest.json")
    manifest["categories"] = [c for c in manifest["categories"] if c["index"] in done]
    (run / "manifest.json").write_bytes(sealed(manifest))


def test_launch_waits_for_what_its_jobs_did(run):
    as_if_all(run)
    with late(run, "units/*/*", 9) as seen:
        assert call("launch", run).stdout == "shard 0: 2 categories\n"
    assert seen.looked > 9


def test_launch_never_says_done_of_what_it_cannot_see(run, monkeypatch):
    as_if_all(run)
    monkeypatch.setattr(visible, "VISIBLE_SECONDS", 0.05)
    with late(run, "units/*/*", None):
        said = call("launch", run, code=4)
    assert "the files of 2 categories are not to be seen" in said.stderr and said.stdout == ""
