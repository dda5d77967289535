"""14 to 17, 20: whatever stands in a stranger's file, its reader says so or reads it."""

import json
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import as_folder, as_index, pictures
from safetensors.torch import save

from circuitcore.cli.config import resolve
from circuitcore.errors import CircuitcoreError
from circuitcore.inputs.images.opening import open_images
from circuitcore.inputs.weightfile import read_header, read_weights
from circuitcore.kernels.masked.paths import PATHS, TABLE, tuned
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import open_run
from circuitcore.runs.intact import damage

INTERESTING = (
    b"\0", b"\xff", b"[", b"{", b'"', b"-1", b"1e999", b"null", b"\\ud800", b"../", b"\n",
)  # fmt: skip


def mangled(content: bytes, chance: random.Random) -> bytes:
    """The same with a few bytes changed, put in, cut out or doubled."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(found) + 1)
        end = min(at + chance.choice((1, 4, 40)), len(found))
        how = chance.randrange(5)
        if how == 0 and at < len(found):
            found[at] = chance.randrange(256)
        elif how == 1:
            found[at:at] = chance.choice(INTERESTING)
        elif how == 2:
            del found[at:end]
        elif how == 3:
            found[at:at] = found[at:end]
        elif at < len(found):
            found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def safetensors(path):
    read_header(path)
    read_weights(path)


def pickle(path):
    read_weights(path, allow_pickle=True)


def index(path):
    images = open_images(str(path), 2)
    for part, categories in images.parts().items():
        for category in categories:
            images.listed(part, category)


def config(path):
    resolve({}, config=path, environment={})


def table(path):
    tuned.cache_clear()
    tuned()


READERS = {
    "safetensors": (safetensors, "weights.safetensors"),
    "pickle": (pickle, "weights.pt"),
    "csv": (index, "index.csv"),
    "parquet": (index, "index.parquet"),
    "config": (config, "config.toml"),
    "unit": (read_circuit, "unit.safetensors"),
    "manifest": (lambda path: open_run(path.parent), "manifest.json"),
    "table": (table, TABLE),
    "derived": (damage, "overlap.parquet"),
}


def whole(what: str, folder, tiny) -> bytes:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
    if what == "safetensors":
        return save(state)
    if what == "pickle":
        torch.save(state, folder / "w")
        return (folder / "w").read_bytes()
    if what in ("csv", "parquet"):
        return as_index(as_folder(folder / "images", pictures()), pictures(), what).read_bytes()
    return {
        "config": lambda: b'levels = "0,0.5"\nthreshold = 0.5\nmemory = "8G"\nquiet = true\n',
        "unit": lambda: next(tiny.folder.glob("units/*/*")).read_bytes(),
        "manifest": lambda: (tiny.folder / "manifest.json").read_bytes(),
        "table": lambda: json.dumps({"paths": {"a": min(PATHS), "b": 3}}).encode(),
        "derived": lambda: (tiny.folder / "overlap.parquet").read_bytes(),
    }[what]()


def fuzz(what: str, folder, tiny, count: int, seed: int) -> int:
    """How many of so many mangled files were refused; anything but a message fails."""
    read, name = READERS[what]
    content, chance, refused = whole(what, folder, tiny), random.Random(seed), 0
    place = folder / "read"
    place.mkdir()
    (place / name).write_bytes(content)
    read(place / name)
    for number in range(count):
        spoiled = mangled(content, chance)
        (place / name).write_bytes(spoiled)
        try:
            read(place / name)
        except CircuitcoreError as error:
            assert error.exit_code in (2, 3)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{what} {seed}/{number}: {spoiled!r:.3000}") from error
    return refused


@pytest.mark.parametrize("what", list(READERS))
def test_a_few_mangled_files(what, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path / "read"))
    refused = fuzz(what, tmp_path, tiny, 120, 0)
    assert refused or what in ("table", "derived")


@pytest.mark.slow
@pytest.mark.parametrize("what", list(READERS))
def test_many_mangled_files(what, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path / "read"))
    print(what, fuzz(what, tmp_path, tiny, 20_000, 1), "refused")


ANY = st.recursive(
    st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip
ENTRIES = st.dictionaries(
    st.text(max_size=9) | st.just("__metadata__"),
    ANY | st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "U8", "BOOL", 3]),
                                 "shape": st.lists(st.integers(-1, 2**64), max_size=3),
                                 "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3)}),
    max_size=4,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(header=ENTRIES, data=st.binary(max_size=24))
def test_any_safetensors_header(tmp_path_factory, header, data):
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    for read in (safetensors, read_circuit):
        try:
            read(path)
        except CircuitcoreError as error:
            assert "any.safetensors" in str(error)


@settings(max_examples=80, deadline=None)
@given(manifest=st.fixed_dictionaries({"configuration": ANY, "options": ANY, "categories": ANY}))
def test_any_manifest(tmp_path_factory, manifest):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        open_run(folder).units()
    except CircuitcoreError as error:
        assert "manifest.json" in str(error)


@settings(max_examples=80, deadline=None)
@given(cells=st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=5))
def test_any_index(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    lines = ["path,label,split", *(",".join(row) for row in cells)]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass", newline="")
    try:
        index(path)
    except CircuitcoreError as error:
        assert "any.csv" in str(error)


VALUES = st.one_of(
    st.integers(-(2**70), 2**70).map(str), st.floats().map(repr),
    st.sampled_from(["true", "false"]),
    st.text("ab,.0[]'é\n", max_size=9).map(json.dumps), st.just("[]"), st.just('["x"]'),
    st.just("{ a = 1 }"), st.just("1979-05-27"),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(
        ["preset", "levels", "threshold", "memory", "seed", "model", "images", "gpu", "stages",
         "target", "mean", "quiet", "skip", "out", "categories", "format", "bias"]
    ),
    value=VALUES,
)  # fmt: skip
def test_any_configuration(tmp_path_factory, name, value):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(f"{name} = {value}\n", encoding="utf-8")
    try:
        config(path)
    except CircuitcoreError as error:
        assert error.exit_code == 2
