"""`watch` and `ls runs`: how far a run is, from its folder alone."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from command import call

from circuitcore.cli.cluster import watching
from circuitcore.cli.progress import Lines
from circuitcore.machine.files import owner_name, sealed
from circuitcore.runs.folder import open_run
from circuitcore.runs.working import presence
from circuitcore.runs.working.presence import Presence, Working, place_quickly
from circuitcore.runs.working.watching import watched


@pytest.fixture
def run(small, tmp_path):
    """Two of ten categories are done, one has failed."""
    folder = shutil.copytree(small.folder, tmp_path / "run")
    opened = open_run(folder)
    for name in ("Coat", "Bag"):  # Bag's was done later
        path = folder / "failed" / f"{opened.path(opened.unit_of(name)).stem}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sealed({"category": name, "error": "gone", "time": 1.0}))
    return folder


def said_by(run, **said) -> Working:
    """A living worker's file: this process's."""
    from dataclasses import asdict

    worker = Working(owner_name(), "node-17.cluster.example.org", "cuda:3", 7, 1e9)
    worker = replace(worker, **said)
    place_quickly(run / "workers" / f"{worker.name}.json", sealed(asdict(worker)))
    return worker


def test_all_workers_are_one_view(run):
    said_by(run, done=3, seconds=60.0, category="Sandal", memory_bytes=3 * 10**9)
    said_by(run, done=1, seconds=40.0, category="Ankle boot", memory_bytes=10**9, device="cpu")
    said_by(run)  # prepares
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    system, _, rest = owner_name().partition("-")
    said_by(run, name=f"{system}-{child.pid}-0", done=100, seconds=1.0)  # and was killed
    found = json.loads(call("watch", run, "--once", "--format", "json").stdout)
    assert (found["categories"], found["done"], found["failed"]) == (10, 2, 1)
    assert found["rate"] == pytest.approx(3 / 60 + 1 / 40)
    assert found["seconds_left"] == pytest.approx(7 / (3 / 60 + 1 / 40))
    assert (found["workers"], found["gone"], found["memory_bytes"]) == (3, 1, 4 * 10**9)
    assert sorted(w["device"] for w in found["workers_now"]) == ["cpu", "cuda:3", "cuda:3"]
    said = call("watch", run, "--once").stdout
    assert max(map(len, said.splitlines())) <= 80
    first = "run: 2/10 done, 1 failed, 270 an hour, 2 min left, 3 workers on 2 devices"
    assert said.splitlines()[0] == first  # and no room for the memory
    assert "Ankle boot" in said and "preparing" in said and "1 ended without a word" in said


def test_a_sweep_of_some_ends_with_those(run):
    said_by(run, of=4, done=2, seconds=20.0)
    assert watched(open_run(run)).seconds_left == pytest.approx(20.0)  # two more, not seven


def test_a_beat_elsewhere_is_as_old_as_its_file(run):
    said_by(run, name="0badcafe-7-00000000")
    assert len(watched(open_run(run)).workers) == 1
    (file,) = (run / "workers").iterdir()
    import os

    os.utime(file, (1, 1))
    now = watched(open_run(run))
    assert (len(now.workers), now.gone) == (0, 1)


def test_everything_long_fits(run, monkeypatch):
    name = "run-" + "x" * 200
    run = run.rename(run.with_name(name))
    for _ in range(3):
        said_by(run, of=10**6, done=123_456, failed=1234, seconds=1e6, category="c\x1b[2J" * 40,
                memory_bytes=78 * 10**9, host="h" * 90, device="cuda:15")  # fmt: skip
    for text in (call("watch", run, "--once").stdout, f"{watching.line(watched(open_run(run)))}\n"):
        assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text


def test_it_ends_when_the_last_worker_does(run, capsys, monkeypatch):
    """A line each time; on a terminal the same place is written over."""
    shown = threading.Event()
    monkeypatch.setattr(watching, "emit", lambda text: (print(text, end=""), shown.set()))

    def look(terminal: bool) -> str:
        shown.clear()
        with Presence(run, "cpu", 3) as present:
            present.tell(category="Sandal")
            looking = threading.Thread(
                target=watching.show, args=(run, "table"),
                kwargs={"once": False, "every": 0.01, "terminal": terminal},
            )  # fmt: skip
            looking.start()
            for _ in range(3):
                shown.clear()
                assert shown.wait(60)
        looking.join(60)
        assert not looking.is_alive()
        return capsys.readouterr().out

    lines = look(terminal=False).splitlines()
    assert len(lines) > 2 and "1 worker" in lines[0] and "0 workers" in lines[-1]
    assert "\x1b" not in "".join(lines)
    assert "\x1b[" in look(terminal=True)


def test_it_ends_at_once_where_all_is_done(run):
    opened = open_run(run)
    for each in opened.manifest["categories"]:
        path = opened.path(each["index"])
        if not path.exists():
            (run / "failed" / f"{path.stem}.json").write_bytes(sealed({}))
    assert call("watch", run).stdout == "run: 2/10 done, 8 failed, 0 workers\n"
    assert "no run folder" in call("watch", run.parent, code=3).stderr


def test_what_is_said_on_the_way_is_of_the_whole_run(run, capsys):
    """Of others' work too, as soon as circuits are made; of a folder that is gone one's own."""
    said_by(run, done=3, seconds=60.0, category="Sandal", memory_bytes=3 * 10**9)
    shown = Lines()
    shown.follow(run)
    shown.start("images", 5)
    assert shown.line().startswith("images 0/5")
    shown.start("circuits", 5)
    expected = "run: 2/10 done, 1 failed, 180 an hour, 1 min left, 1 worker on cuda:3, 3.0 GB"
    assert shown.line() == expected
    shutil.rmtree(run)
    assert shown.line().startswith("circuits 0/5")
    shown.close()


def test_a_sweep_says_where_it_can_be_watched(run, monkeypatch):
    told = []
    monkeypatch.setattr(Lines, "follow", lambda self, folder: told.append(folder))
    call("worker", run, "Bag")
    assert told == [run]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_runs_that_are_worked_on_are_told_from_others(run, form):
    with Presence(run, "cpu", 3):
        said = call("ls", "runs", "--root", run.parent, "--format", form).stdout
        once = call("watch", run, "--once", "--format", form).stdout
    if form == "json":
        (found,) = json.loads(said)
        assert (found["done"], found["categories"], found["workers"]) == (2, 10, 1)
        (found,) = json.loads(call("ls", "runs", "--root", run.parent, "--format", form).stdout)
        assert found["workers"] == 0
    if form == "csv":
        assert [row.split(",")[2:4] for row in once.splitlines()] == [["categories", "done"],
                                                                       ["10", "2"]]  # fmt: skip
    else:
        assert json.loads(once)["workers_now"][0]["device"] == "cpu"


def test_a_rate_counts_from_the_first_category(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(presence.time, "monotonic", lambda: clock[0])
    present = Presence(run, "cpu", 3)
    present.tell()
    clock[0] = 500.0  # images were read
    present.tell(category="Bag")
    clock[0] = 510.0
    present.tell(done=1)
    assert watched(open_run(run)).rate == pytest.approx(0.1)
