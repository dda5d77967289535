"""26 and 27: a disk that fails at any one operation, or is full, read-only or not ours."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest
from command import call

from circuitcore.errors import PartialError
from circuitcore.machine import files

SMALL = (
    "sweep", "Trouser", "--scoring-images", "1", "--extraction-images", "3", "--heldout-images",
    "3", "--levels", "0,0.4", "--threshold", "0.3", "--device", "cpu", "--quiet", "--out",
)  # fmt: skip


class Disk:
    """Stands in for ``os`` and `Path.open` of what is written; the ``fails``-th call of it fails.

    A write that fails has written half.  ``done``: what was called, in order.
    """

    def __init__(self, fails: int, number: int) -> None:
        self.fails, self.number, self.done = fails, number, []

    def count(self, what: str, path: object) -> None:
        self.done.append(what)
        if len(self.done) - 1 == self.fails:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def __getattr__(self, name: str):
        own = getattr(os, name)
        if name not in ("open", "fsync", "replace"):
            return own

        def counted(first, *others):
            self.count(name, first)
            return own(first, *others)

        return counted

    def opened(self, path: Path, mode: str = "r", *others, **named):
        if "x" not in mode:
            return OPEN(path, mode, *others, **named)
        self.count("create", path)
        file = OPEN(path, mode, *others, **named)
        return Writing(self, file, path)


class Writing:
    """A file that is written through a `Disk`."""

    def __init__(self, disk, file, path) -> None:
        self.disk, self.file, self.path = disk, file, path

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.disk.count("write", self.path)
        self.file.write(content[len(content) // 2 :])


OPEN = Path.open


@contextlib.contextmanager
def failing(fails: int, number: int):
    """Everything written meanwhile goes through a `Disk`."""
    disk = Disk(fails, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", disk)
        patch.setattr(Path, "open", lambda *a, **b: disk.opened(*a, **b))
        yield disk


def whole_or_absent(folder: Path) -> None:
    """No temporary file, and nothing that is there is torn."""
    from circuitcore.runs.intact import damaged

    if folder.exists():
        assert damaged(folder) == {}
        assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


def fail_at(tiny, same, folder: Path, place: int, number: int) -> None:
    with failing(place, number) as disk, pytest.raises(PartialError, match="same command again"):
        tiny.sweep(folder)
    assert len(disk.done) > place
    whole_or_absent(folder)
    assert tiny.sweep(folder).verify(sample=0) == []
    assert same(folder)


@pytest.fixture(scope="module")
def operations(tiny, tmp_path_factory):
    """What a whole sweep asks of a disk, in order."""
    with failing(-2, 0) as disk:
        tiny.sweep(tmp_path_factory.mktemp("counted") / "run")
    return disk.done


def test_26_27_every_kind_of_call_fails_in_every_kind_of_file(tiny, same, operations, tmp_path):
    """Manifest, images, plan, a unit: six calls each; every other one of what is derived."""
    assert set(operations) == {"create", "write", "fsync", "replace", "open"}
    assert len(operations) % 6 == 0  # create, write, fsync, replace, open and fsync the folder
    for place in [*range(0, 24, 2), *range(25, len(operations), 5)]:
        number = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)[place // 2 % 4]
        fail_at(tiny, same, tmp_path / str(place), place, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_26_27_every_call_of_a_sweep_fails_once(tiny, same, operations, tmp_path, number):
    for place in range(len(operations)):
        fail_at(tiny, same, tmp_path / str(place), place, number)


def test_a_folder_whose_file_system_cannot_sync_names_is_no_fault(tmp_path, monkeypatch):
    own = os.fsync

    def fsync(opened):
        if os.path.isdir(f"/proc/self/fd/{opened}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        own(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.fixture
def disk(tmp_path):
    """``disk(options)``: a small disk of its own, mounted anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk can be mounted by root alone: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


def test_26_a_disk_that_is_really_full(disk, tmp_path):
    folder = disk("size=64k") / "run"
    said = call(*SMALL, folder, code=4).stderr
    assert "No space left" in said and str(folder) in said
    whole_or_absent(folder)
    disk("remount,size=64m")
    call(*SMALL, folder)
    call("verify", folder, "--sample", 0)


def test_26_temporary_files_beyond_the_disk_end_in_a_message_and_not_in_a_signal(
    disk, tmp_path, monkeypatch
):
    """A memory map of a file without room for it kills the process that writes to it."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(disk("size=4k")))
    said = call(*SMALL, tmp_path / "run", code=4).stderr
    assert str(tempfile.tempdir) in said and "TMPDIR" in said


def test_27_a_read_only_disk(disk):
    folder = disk("size=4m") / "run"
    disk("remount,ro")
    said = call(*SMALL, folder, code=4).stderr
    assert "Read-only file system" in said and str(folder.parent) in said


def test_27_where_nothing_may_be_written(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    said = call(*SMALL, tmp_path / "run", code=4).stderr
    tmp_path.chmod(0o700)
    assert "Permission denied" in said


def test_an_output_that_can_be_no_folder(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in call(*SMALL, tmp_path / "file", code=2).stderr
    assert "root of the file system" in call(*SMALL, "/", code=2).stderr
