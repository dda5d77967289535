"""Workers that join a run: they share it without a word, and one that dies is replaced."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import joining
import pytest
from command import call, masks

from circuitcore.inputs.categories import Category
from circuitcore.jobs import claims as claiming
from circuitcore.jobs import job
from circuitcore.jobs.claims import Claims
from circuitcore.machine.files import owner_name, sealed
from circuitcore.progress import Silent
from circuitcore.runs.folder import open_run
from circuitcore.runs.working import presence
from circuitcore.runs.working.presence import Presence, beating, workers

SMALL = (
    "--scoring-images", "1", "--extraction-images", "3", "--heldout-images", "3",
    "--levels", "0,0.4", "--threshold", "0.3", "--device", "cpu", "--quiet",
)  # fmt: skip
WANTED = ("Trouser", "Bag", "Coat", "Sandal")
OTHER_MACHINE = "0badcafe-7-00000000"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run with one category done, for others to join; copy it to change it."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    call("sweep", "Dress", *SMALL, "--out", folder)
    return folder


@pytest.fixture
def run(begun, tmp_path):
    import shutil

    return open_run(shutil.copytree(begun, tmp_path / "run"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forks")
def test_three_join_and_one_is_killed(run, tmp_path):
    """Each category is committed once, none is lost; the dead one's is taken over, last."""
    done = subprocess.run(
        [sys.executable, "-P", joining.__file__, run.folder, *WANTED],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(joining.__file__)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    by = Counter(name for _, name in found["commits"])
    assert by == dict.fromkeys(WANTED, 1)
    still, claimed = found["claimed"]
    assert still and claimed in WANTED
    assert claimed not in [name for _, name in found["before"]]
    assert found["commits"][-1][1] == claimed
    assert found["codes"] == [-signal.SIGKILL, 0, 0]
    assert sum(found["done"]) == len(WANTED) and found["left"] == []
    alone = tmp_path / "alone"
    call("sweep", *WANTED, "Dress", *SMALL, "--out", alone)
    ours, theirs = masks(run.folder), masks(alone)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def category(run, name: str) -> Category:
    index = run.unit_of(name)
    return Category(index, name, name)


def claimed_by(run, which: Category, holder: str) -> Path:
    path = run.folder / "claims" / run.path(which.index).stem
    path.parent.mkdir(exist_ok=True)
    path.write_text(holder)
    return path


def taking(run, names, passed=None) -> Claims:
    chosen = [category(run, name) for name in names]
    return Claims(run, owner_name(), chosen, passed or (lambda _: None))


def test_two_never_take_the_same(run):
    one, other = (taking(run, WANTED) for _ in range(2))
    with one, other:
        found = [claims.take(False) for claims in (one, other, one, other)]
        assert [c.name for c in found] == list(WANTED)
        assert one.take(False) is None and other.take(False) is None
        one.release(found[0])  # not done: another may have it
        assert other.take(False) == found[0]
    assert not (run.folder / "claims").exists()


def test_many_threads_take_each_category_once(run):
    names = [c["name"] for c in run.manifest["categories"]]
    taken, all_claims = [], [taking(run, names) for _ in range(8)]

    def work(claims) -> None:
        while (found := claims.take(False)) is not None:
            taken.append(found.name)

    threads = [threading.Thread(target=work, args=(claims,)) for claims in all_claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(set(names) - {"Dress"})  # which is done


def test_a_claim_of_a_dead_process_here_is_taken_over_at_once(run):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    system, _, rest = owner_name().partition("-")
    dead = f"{system}-{child.pid}-{rest.rpartition('-')[2]}"
    bag = category(run, "Bag")
    path = claimed_by(run, bag, dead)
    file = run.folder / "workers" / f"{dead}.json"
    presence.place_quickly(file, b"{}")
    with taking(run, ["Bag"]) as claims:
        assert claims.take(False) == bag
        assert path.read_text() == claims.me
        assert not file.exists()


@pytest.mark.parametrize("holder", [OTHER_MACHINE, ""], ids=["elsewhere", "half written"])
def test_one_elsewhere_is_taken_over_once_it_was_seen_not_to_beat(run, holder, monkeypatch):
    """Whatever the clocks say: its file is of 1970 or of 2096, and counts by its changes alone."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(presence.time, "monotonic", lambda: clock.now)
    bag = category(run, "Bag")
    claimed_by(run, bag, holder)
    beat = run.folder / "workers" / f"{holder or run.path(bag.index).stem}.json"
    claims = taking(run, ["Bag"])
    for number in range(100):  # 500 s: it lives
        presence.place_quickly(beat, sealed({"beat": number}))
        os.utime(beat, (0, 0) if number % 2 else (4e9, 4e9))
        clock.now += presence.LOOK_SECONDS
        assert claims.take(False) is None
    clock.now += 1e6  # this process was stopped for days, and saw nothing
    looks = 0
    while claims.take(False) is None:
        clock.now += presence.LOOK_SECONDS
        looks += 1
        assert looks < 100
    assert looks * presence.LOOK_SECONDS >= presence.SILENT_SECONDS - 2 * presence.LOOK_SECONDS


def test_of_two_that_take_over_one_gets_it(run, monkeypatch):
    """The second one renames what the first one just claimed, and puts it back."""
    bag = category(run, "Bag")
    path = claimed_by(run, bag, OTHER_MACHINE)
    monkeypatch.setattr(claiming, "SILENT_SECONDS", 0)
    one, other = taking(run, ["Bag"]), taking(run, ["Bag"])
    own = os.rename

    def slow(source, target):
        monkeypatch.setattr(claiming.os, "rename", own)
        assert other.take(False) == bag
        own(source, target)

    monkeypatch.setattr(claiming.os, "rename", slow)
    assert one.take(False) is None
    assert path.read_text() == other.me
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_done_or_failed_elsewhere_is_passed_and_not_tried_again(run):
    told = []
    bag, coat = category(run, "Bag"), category(run, "Coat")
    with taking(run, ["Dress", "Bag", "Coat"], told.append) as claims:
        failure = run.folder / "failed" / f"{run.path(bag.index).stem}.json"
        failure.parent.mkdir(exist_ok=True)
        failure.write_bytes(sealed({"category": "Bag", "error": "an image is gone", "time": 1.0}))
        assert claims.take(True) == coat
        assert [c.name for c in told] == ["Dress", "Bag"]
        assert claims.failed == {bag: "an image is gone"}
    with taking(run, ["Bag"]) as again:  # one that begins later tries
        assert again.take(False) == bag


def test_without_claims_work_goes_on(run, monkeypatch):
    """A disk that refuses them, or is no place for them."""
    (run.folder / "claims").write_text("no folder")
    with taking(run, ["Bag"]) as claims, taking(run, ["Bag"]) as others:
        assert claims.take(False) == others.take(False) == category(run, "Bag")


def test_a_worker_says_how_it_is_and_leaves_nothing_behind(run):
    with Presence(run.folder, "cuda:1", 4) as present:
        present.tell(category="Bag", done=2, memory_bytes=5)
        ((path, said),) = workers(run.folder)
        assert (said.device, said.of, said.done, said.category) == ("cuda:1", 4, 2, "Bag")
        assert said.name == path.stem and beating(path)
        again = said.beat
        present.tell()
        ((_, said),) = workers(run.folder)
        assert said.beat > again and said.seconds > 0
    present.tell()  # a beat that comes late
    assert not (run.folder / "workers").exists()


def test_what_the_dead_left_is_swept_and_what_the_living_hold_is_kept(run):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    system = owner_name().partition("-")[0]
    dead, bag = f"{system}-{child.pid}-0", category(run, "Bag")
    claimed_by(run, bag, dead)
    presence.place_quickly(run.folder / "workers" / f"{dead}.json", b"{}")
    elsewhere = claimed_by(run, category(run, "Coat"), OTHER_MACHINE)
    fresh = run.folder / "workers" / f"{OTHER_MACHINE}.json"
    presence.place_quickly(fresh, b"{}")
    presence.sweep_gone(run.folder)
    left = [p for name in ("claims", "workers") for p in (run.folder / name).iterdir()]
    assert left == [elsewhere, fresh]


def test_a_run_with_claims_in_it_is_intact(run):
    claimed_by(run, category(run, "Bag"), OTHER_MACHINE)
    presence.place_quickly(run.folder / "workers" / f"{OTHER_MACHINE}.json", b"torn {")
    assert call("verify", run.folder, "--sample", 0).stdout.startswith("intact")
    assert list(workers(run.folder)) == []


def test_what_a_worker_has_failed_at_is_free_again(run, monkeypatch):
    from circuitcore.errors import InputError, PartialError

    def fail(*_):
        raise InputError("an image is gone")

    monkeypatch.setattr(job, "_swept", fail)
    with pytest.raises(PartialError, match="1 of 1 categories failed(.|\n)*an image is gone"):
        job.worker(run.folder, 0, 1, Silent(), ["Bag"], others=True)
    assert not (run.folder / "claims").exists() and not (run.folder / "workers").exists()
