"""Overlap of all pairs, killed: the same command goes on from the last block, to the same table."""

import numpy as np
import pytest

from circuitcore.analysis import overlap
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import StoredMask
from circuitcore.runs.folder import open_run
from circuitcore.runs.intact import damaged
from circuitcore.runs.working.unfinished import FOLDER, Unfinished

BLOCK = 20_000  # bytes of masks: the bundled circuits are of seven times as many each


class Killed(BaseException):
    pass


@pytest.fixture
def run(own_small, monkeypatch):
    """A run whose masks are of many blocks, without its table."""
    monkeypatch.setattr(overlap, "BLOCK_BYTES", BLOCK)
    (own_small.folder / overlap.FILE).unlink(missing_ok=True)
    return open_run(own_small.folder)


@pytest.fixture
def read(monkeypatch):
    """Bytes of masks that were read since, by slice."""
    slices, own = [], StoredMask.__getitem__

    def counted(self, part):
        found = own(self, part)
        slices.append(len(found))
        return found

    monkeypatch.setattr(StoredMask, "__getitem__", counted)
    return slices


def kill(run, monkeypatch, after: int) -> None:
    """Kill the count once so many blocks are kept."""
    own, left = Unfinished.keep, [after]

    def keep(self, *given):
        own(self, *given)
        left[0] -= 1
        if not left[0]:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Unfinished, "keep", keep)
        overlap.pairs(run, run.records())


@pytest.mark.parametrize("after", [1, 4, 9])
def test_it_goes_on_where_it_was_killed(run, read, monkeypatch, after):
    whole = overlap.pairs_table(run, run.records())
    every = sum(read)
    del read[:]
    kill(run, monkeypatch, after)
    first = sum(read)
    assert 0 < first < every
    assert any((run.folder / FOLDER).iterdir()) and damaged(run.folder) == {}
    del read[:]
    assert overlap.pairs(run, run.records()).equals(whole, check_metadata=True)
    assert sum(read) == every - first
    assert not (run.folder / FOLDER).exists()


@pytest.mark.parametrize("spoiled", ["damaged", "other circuits", "gone"])
def test_what_cannot_be_trusted_is_counted_again(run, read, monkeypatch, spoiled):
    whole = overlap.pairs_table(run, run.records())
    kill(run, monkeypatch, 9)
    for path in (run.folder / FOLDER).iterdir():
        if spoiled == "damaged":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))
        elif spoiled == "gone":
            path.unlink()
    if spoiled == "other circuits":
        monkeypatch.setattr(type(run), "contents", lambda run: "of others")
    assert overlap.pairs(run, run.records()).to_pydict() == whole.to_pydict()


def test_a_run_of_one_block_keeps_nothing(own_small, monkeypatch):
    (own_small.folder / overlap.FILE).unlink(missing_ok=True)
    run = open_run(own_small.folder)
    monkeypatch.setattr(Unfinished, "keep", lambda *given: pytest.fail("one block was kept"))
    overlap.pairs(run, run.records())
    assert not (run.folder / FOLDER).exists()


def test_a_disk_that_refuses_is_no_matter(run, monkeypatch):
    whole = overlap.pairs_table(run, run.records())
    (run.folder / FOLDER).write_text("in the way")
    assert overlap.pairs(run, run.records()).equals(whole, check_metadata=True)
    (run.folder / FOLDER).unlink()


def test_all_of_it_is_told(run):
    told = Silent()
    parts, done = [], []
    told.start = lambda what, total: parts.append((what, total))
    told.advance = lambda count, detail="": done.append(count)
    overlap.pairs(run, run.records(), told)
    assert len(parts) == 1 and "overlap" in parts[0][0]
    assert len(done) > 2 * len(run.manifest["model"]) and sum(done) <= parts[0][1]


def test_what_is_kept_is_what_is_found(tmp_path):
    random = np.random.default_rng(0)
    square = random.integers(0, 2**40, (7, 7))
    square = square + square.T
    kept = Unfinished(tmp_path, "these")
    assert kept.found(3) is None
    kept.keep(3, 12_345, square)
    count, counts = kept.found(3)
    assert count == 12_345 and np.array_equal(counts, square)
    assert kept.found(2) is None and Unfinished(tmp_path, "those").found(3) is None
