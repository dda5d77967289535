"""30: whatever bit of a run's files flips, it is found or changes nothing; a rerun mends it."""

import contextlib
import json
import random
import shutil
import struct

import pytest
from command import call
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.errors import InputError
from circuitcore.machine.files import sealed, sweep_orphans, unsealed
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import checked_key, read_circuit, read_record, stored_mask
from circuitcore.runs.intact import damage, damaged, files_of, set_aside_damaged


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def spoil(path) -> None:
    """Flip a bit that means something: some of a parquet file's do not."""
    position = path.stat().st_size * 4
    while damage(path) is None:
        flip(path, position)
        position += 8


def flips(folder, count: int, seed: int):
    """(file, bit) at random: files in turn, so that small ones have their share."""
    chosen, every = random.Random(seed), list(files_of(folder))
    for number in range(count):
        path = every[number % len(every)]
        yield path, chosen.randrange(path.stat().st_size * 8)


def found_or_harmless(tiny, answers, copy, path, position: int) -> bool:
    """Whether `verify` names the file; if it does not, all that is read must be as before."""
    before = path.read_bytes()
    flip(path, position)
    try:
        try:
            problems = tiny.open(copy).verify(sample=0)
        except InputError as error:  # of the manifest, without which there is no run
            problems = [str(error)]
        if problems:
            assert any(str(path) in line for line in problems), (path, position, problems)
            return True
        assert answers(tiny.open(copy)) == answers(tiny.open(tiny.folder)), (path, position)
        return False
    finally:
        path.write_bytes(before)


def test_a_sample_of_flips_is_found_or_harmless(tiny, answers, same, copy):
    found = [found_or_harmless(tiny, answers, copy, *each) for each in flips(copy, 90, 0)]
    assert len(list(files_of(copy))) >= 9 and sum(found) > 60
    assert same(copy)


@pytest.mark.slow
def test_thousands_of_flips_are_found_or_harmless(tiny, answers, copy):
    found = [found_or_harmless(tiny, answers, copy, *each) for each in flips(copy, 6000, 1)]
    print(sum(found), "of", len(found), "found")


def test_every_bit_of_a_manifest(tiny, answers, copy):
    """Its text alone, without opening the run: all of them."""
    content = (copy / "manifest.json").read_bytes()
    wanted = unsealed(content)
    for position in range(len(content) * 8):
        spoiled = bytearray(content)
        spoiled[position // 8] ^= 1 << position % 8
        try:
            assert unsealed(bytes(spoiled)) == wanted, position
        except ValueError:
            continue


@pytest.mark.parametrize(
    "name", ["unit", "manifest.json", "images.parquet", "plan.json", "curves.parquet",
             "overlap.parquet", "controls.json", "report.html"],
)  # fmt: skip
def test_a_rerun_sets_aside_what_is_damaged_says_so_and_makes_it_anew(name, tiny, same, copy):
    path = next(copy.glob("units/*/*")) if name == "unit" else copy / name
    spoil(path)
    spoiled, told = path.read_bytes(), Notes()
    run = tiny.sweep(copy, progress=told)
    assert any(str(path) in note and "set aside" in note for note in told.notes), told.notes
    (kept,) = (copy / "quarantine").iterdir()
    assert kept.read_bytes() == spoiled and kept.name.startswith(path.name)
    assert run.verify() == []
    assert same(copy)
    assert name == "controls.json" or damage(path) is None


@pytest.mark.parametrize("name", ["overlap.parquet", "controls.json", "curves.parquet"])
@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "garbage"])
def test_derived_files_are_never_in_the_way_of_a_report(name, how, tiny, copy):
    path = copy / name
    content = path.read_bytes()
    if how == "flipped":
        spoil(path)
    else:
        path.write_bytes({"cut": content[:-1], "emptied": b"", "garbage": b"\xff{[" * 99}[how])
    assert any(str(path) in line for line in tiny.open(copy).verify(sample=0))
    told = Notes()
    tiny.open(copy).report(progress=told)
    assert any(str(path) in note for note in told.notes)
    assert tiny.open(copy).verify(sample=0) == []


def test_repair_makes_anew_what_is_derived_and_names_what_it_cannot(small, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "run")
    for name in ("overlap.parquet", "images.parquet", "report.html"):
        spoil(folder / name)
    said = call("verify", folder, "--sample", 0, code=3).stdout
    assert len(said.splitlines()) == 3 and "Traceback" not in said
    assert "intact: 2 circuits" in call("verify", folder, "--repair").stdout
    assert "intact: 2 circuits" in call("verify", folder).stdout
    unit = next(folder.glob("units/*/*"))
    spoil(unit)
    assert "intact: 1 circuits" in call("verify", folder, "--repair").stdout
    assert call(*small.arguments, "--out", folder, "--quiet").stdout
    assert "intact: 2 circuits" in call("verify", folder).stdout


def test_numbers_that_were_changed_with_their_hash_are_computed_again(tiny, copy):
    from circuitcore.runs.circuitfile import write_circuit

    path = next(iter(tiny.open(copy)._run.units().values()))
    stored = read_circuit(path)
    heldout = stored.record.circuit.heldout
    other = heldout.model_copy(update={"hit": 1.0 - heldout.hit / 2, "false_alarms": 11})
    circuit = stored.record.circuit.model_copy(update={"heldout": other})
    record = stored.record.model_copy(update={"circuit": circuit})
    write_circuit(path, stored.key, record, stored.kept)
    assert tiny.open(copy).verify(sample=0) == []
    (line,) = tiny.open(copy).verify(sample=2)
    assert str(path) in line and "recorded" in line


def test_a_mask_that_was_changed_with_its_hash_is_found(tiny, copy):
    from circuitcore.runs.circuitfile import write_circuit

    path = next(iter(tiny.open(copy)._run.units().values()))
    stored = read_circuit(path)
    layer = next(name for name, mask in stored.kept.items() if mask.any())
    stored.kept[layer].view(-1)[stored.kept[layer].view(-1).nonzero()[0]] = False
    write_circuit(path, stored.key, stored.record, stored.kept)
    (line,) = tiny.open(copy).verify(sample=0)
    assert str(path) in line and "keep" in line


def test_images_that_were_changed_with_their_hash_are_found(tiny, copy):
    from circuitcore.runs.tables import read_table, write_table

    table = read_table(copy / "images.parquet")
    write_table(copy / "images.parquet", table.slice(1))
    (line,) = tiny.open(copy).verify(sample=0)
    assert "images.parquet" in line and "other images" in line


HOSTILE = {
    "no table": None,
    "a list": [],
    "numbers": {"format": 1},
    "shapes that are no table": {"shapes": "[]"},
    "a shape that is no list": {"shapes": '{"a": 3}'},
    "a negative shape": {"shapes": '{"a": [-1]}'},
    "a shape without end": {"shapes": json.dumps({"a": [2**40] * 8})},
    "shapes too deep": {"shapes": "[" * 100_000},
    "another layer": {"shapes": '{"zzz": [8]}'},
    "a record that is a number": {"record": "3"},
    "a record that is no JSON": {"record": "{"},
    "another format": {"format": "circuitcore.circuit/9"},
    "half a surrogate": {"key": "\ud800"},
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_headers_that_are_at_odds_with_themselves(what, tiny, copy):
    """Of the header's text, by hand: no traceback in anything that reads a unit."""
    path = next(copy.glob("units/*/*"))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change = HOSTILE[what]
    if isinstance(change, dict):
        header["__metadata__"] |= change
        header["__metadata__"].pop("record_sha256")
    else:
        header["__metadata__"] = change
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    for read in (read_record, read_circuit, checked_key):
        with pytest.raises(InputError, match=path.stem[:20]):
            read(path)
    assert any(str(path) in line for line in tiny.open(copy).verify(sample=0))
    with pytest.raises(InputError, match=path.stem[:20]):
        _ = tiny.open(copy).document


def test_a_unit_one_byte_short_stops_what_maps_it(tiny, copy):
    path = next(copy.glob("units/*/*"))
    path.write_bytes(path.read_bytes()[:-1])
    (copy / "overlap.parquet").unlink()
    with pytest.raises(InputError, match="damaged"):
        tiny.open(copy).overlap()
    with pytest.raises(InputError):
        for layer in read_circuit(next(tiny.folder.glob(f"units/*/{path.name}"))).kept:
            stored_mask(path, layer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(document=st.dictionaries(st.text().filter("sha256".__ne__), JSON, max_size=4))
def test_any_document_comes_back_and_no_flip_goes_unseen(document):
    content = sealed(document)
    assert unsealed(content) == document
    spoiled = bytearray(content)
    spoiled[len(content) // 2] ^= 4
    with contextlib.suppress(ValueError):
        assert unsealed(bytes(spoiled)) == document


def test_folders_that_are_no_runs_are_left_alone(tiny, tmp_path):
    (tmp_path / "mine.json").write_text("{broken")
    (tmp_path / "report.html").write_text("mine")
    run = tiny.sweep(tmp_path)
    assert (tmp_path / "mine.json").read_text() == "{broken"
    assert not (tmp_path / "quarantine").exists() and run.verify(sample=0) == []
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "plan.json").write_text("{broken")
    assert damaged(tmp_path) == {} and set_aside_damaged(tmp_path, print) == 0


def test_temporary_files_of_the_dead_are_swept_and_of_the_living_kept(tmp_path):
    import os
    import subprocess
    import sys

    from circuitcore.machine import files

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f".a.{files._system()}-{dead.pid}-00.tmp": False,
        f".b.{files._system()}-{os.getpid()}-00.tmp": True,
        f".c.otherhst-{dead.pid}-00.tmp": True,
        ".d.123-00.tmp": True,  # of an earlier version, and young
    }
    for name in names:
        (tmp_path / name).touch()
    old = tmp_path / ".e.otherhst-1-00.tmp"
    old.touch()
    os.utime(old, (0, 0))
    assert sweep_orphans(tmp_path) == 2
    assert {p.name for p in tmp_path.iterdir()} == {n for n, stays in names.items() if stays}
