"""20, 25, 31, 35 to 37, 41: other processes, clocks, versions, inputs than a run began with."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sweep_tiny
from command import masks
from PIL import Image

import circuitcore
from circuitcore.errors import InputError
from circuitcore.machine import files
from circuitcore.machine.files import sealed, unsealed
from circuitcore.machine.room import NO_LIMIT, cores, free_host_memory
from circuitcore.progress import Silent


class Notes(Silent):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_31_two_sweeps_at_once_leave_one_valid_unit_a_key(tiny, tmp_path):
    """Two processes, begun at once."""
    run, options = tmp_path / "run", json.dumps(sweep_tiny.OPTIONS)
    children = [
        subprocess.Popen(
            [sys.executable, "-P", sweep_tiny.__file__, tiny.images, run, tmp_path / n, options],
            stderr=subprocess.PIPE, text=True,
        )
        for n in "ab"
    ]  # fmt: skip
    said = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert list(tiny.open(run)) == ["middle"] and len(list(run.glob("units/*/*"))) == 1
    assert tiny.open(run).verify(sample=0) == []
    for name, bits in masks(run).items():
        assert bits.tobytes() == tiny.masks[name].tobytes()


def test_31_two_writers_of_one_process_number_do_not_share_a_file(tmp_path, monkeypatch):
    """As in two containers: both whole, whichever comes last."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    contents = [bytes([n]) * 200_000 for n in range(4)]
    threads = [
        threading.Thread(target=files.write_atomically, args=(tmp_path / "unit", content))
        for content in contents * 5
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "unit").read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["unit"]


def test_31_a_temporary_file_is_never_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "same")
    system, pid = files._system(), os.getpid()
    (tmp_path / f".unit.{system}-{pid}-same.tmp").write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "unit", b"mine")
    assert not (tmp_path / "unit").exists()


@pytest.mark.parametrize("then", [0.0, 4e9], ids=["1970", "2096"])
def test_35_a_clock_set_elsewhere_changes_nothing(then, tiny, same, copy, monkeypatch):
    before = {path: path.read_bytes() for path in copy.glob("units/*/*")}
    monkeypatch.setattr(time, "time", lambda: then)
    for path in before:
        os.utime(path, (then, then))
    run = tiny.sweep(copy)
    assert {path: path.read_bytes() for path in copy.glob("units/*/*")} == before
    assert run.verify(sample=0) == [] and same(copy)


def remade(copy, change):
    """The manifest of a run changed, as another version would have written it."""
    manifest = unsealed((copy / "manifest.json").read_bytes())
    change(manifest)
    (copy / "manifest.json").write_bytes(sealed(manifest))


def test_36_circuits_of_another_version_are_kept_and_it_is_said(tiny, same, copy):
    remade(copy, lambda m: m["versions"].update(circuitcore="0.0.9", torch="1.0"))
    told = Notes()
    tiny.sweep(copy, progress=told)
    assert any("circuitcore 0.0.9, now" in note and "torch 1.0" in note for note in told.notes)
    assert same(copy)


def test_36_other_numbers_and_formats_are_refused(tiny, copy):
    kept = (copy / "manifest.json").read_bytes()
    remade(copy, lambda m: m["configuration"].update(numerics=2))
    with pytest.raises(InputError, match="numerics: 2 there"):
        tiny.sweep(copy)
    (copy / "manifest.json").write_bytes(kept)
    remade(copy, lambda m: m.update(format="circuitcore.run/9"))
    with pytest.raises(InputError, match="format 'circuitcore.run/9'"):
        tiny.sweep(copy)


def test_37_with_another_chunk_the_same_masks(tiny, same, tmp_path):
    run = tiny.sweep(tmp_path / "run", "left", memory="2M")
    tiny.sweep(tmp_path / "run", memory="64M")
    assert run.verify(sample=2) == [] and same(tmp_path / "run")


def test_20_no_verb_combines_a_run_with_other_images_or_weights(tiny, tmp_path):
    """Every verb that runs the network, `extract` too: it would use the stored curves."""
    root = shutil.copytree(tiny.images, tmp_path / "images")
    model = sweep_tiny.tiny_model(root)
    options = sweep_tiny.OPTIONS | {"categories": "left", "out": tmp_path / "run"}
    circuitcore.sweep(model, root, **options)
    image = root / "val" / "left" / "1.png"
    Image.fromarray(np.full((6, 6), 7, np.uint8)).save(image)
    changed = circuitcore.open_run(tmp_path / "run", model, root)
    for verb in (lambda: changed.extract(threshold=0.2), changed.evaluate, changed.controls):
        with pytest.raises(InputError, match="images_sha256"):
            verb()
    shutil.copy(tiny.images / "val" / "left" / "1.png", image)
    other = sweep_tiny.tiny_model(root)
    object.__setattr__(other, "sha256", "0" * 64)
    with pytest.raises(InputError, match="weights_sha256"):
        circuitcore.open_run(tmp_path / "run", other, root).extract(threshold=0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "run"]


def groups(root, lines, limits):
    """A made-up system with 8 GB available and control groups of these limits and uses."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8000000 kB\n")
    (root / "proc/self/cgroup").write_text(lines)
    for folder, (most, used, stat) in limits.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        old = folder.startswith("memory")
        (place / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{most}\n")
        (place / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{stat}\n")
    return root


@pytest.mark.parametrize(
    ("lines", "limits", "free"),
    [
        ("0::/", {}, 8_192_000_000),
        ("0::/job", {"job": ("max", 5, "")}, 8_192_000_000),
        ("0::/job", {"job": (600_000_000, 200_000_000, "inactive_file 50")}, 400_000_050),
        ("0::/a/b", {"a": (10**9, 9 * 10**8, ""), "a/b": ("max", 0, "")}, 10**8),
        ("0::/of/the/host", {"": (10**9, 10**8, "")}, 9 * 10**8),
        ("4:memory:/job\n0::/", {"memory/job": (10**9, 10**8, "total_inactive_file 7")},
         9 * 10**8 + 7),
        ("4:cpu,memory:/j", {"memory": (NO_LIMIT * 7, 1, ""), "memory/j": (10**7, 10**8, "")}, 0),
    ],
)  # fmt: skip
def test_25_the_smallest_limit_on_memory_binds(lines, limits, free, tmp_path):
    assert free_host_memory(groups(tmp_path, lines, limits)) == free


@pytest.mark.parametrize(
    ("lines", "quotas", "slurm", "count"),
    [
        ("0::/", {}, "", 16),
        ("0::/job", {"job": "max 100000"}, "", 16),
        ("0::/job", {"job": "250000 100000"}, "", 3),
        ("0::/a/b", {"a": "50000 100000", "a/b": "max 100000"}, "", 1),
        ("3:cpu,cpuacct:/job\n0::/", {"cpu/job": "400000 100000"}, "", 4),
        ("3:cpu,cpuacct:/job\n0::/", {"cpu/job": "-1 100000"}, "", 16),
        ("0::/", {}, "8", 8),
        ("0::/job", {"job": "250000 100000"}, "8", 3),
        ("0::/", {}, "64", 16),
        ("0::/", {}, "8(x2)", 16),
    ],
)
def test_25_the_smallest_limit_on_cores_binds(lines, quotas, slurm, count, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    root = groups(tmp_path, lines, {})
    for folder, text in quotas.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        if folder.startswith("cpu"):
            for name, value in zip(("quota", "period"), text.split(), strict=True):
                (place / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
        else:
            (place / "cpu.max").write_text(f"{text}\n")
    assert cores(root) == count


def test_25_a_process_keeps_to_the_cores_it_has():
    code = (
        "import os; os.cpu_count = lambda: 64; from circuitcore.machine.process import settle; "
        "settle(); import torch; print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {n: v for n, v in os.environ.items() if n != "OMP_NUM_THREADS"}
    first = f"{sorted(os.sched_getaffinity(0))[0]}"
    command = ["taskset", "-c", first, sys.executable, "-P", "-c", code]
    if shutil.which("taskset") is None:
        pytest.skip("no taskset here")
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["1", "1"]


def test_25_a_limit_on_addresses_binds(monkeypatch):
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (pages + 10**8, pages + 10**8))
    assert 0 < free_host_memory() <= 2 * 10**8


def test_41_what_is_run_is_read_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    import tempfile

    from circuitcore.kernels.cache import private_folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = private_folder("code")
    assert private_folder("code") == own and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)  # others could have put something there
    other = private_folder("code")
    assert other != own and other.stat().st_mode & 0o777 == 0o700
    own.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    assert private_folder("code") not in (own, tmp_path / "elsewhere")
    own.unlink()
    own.write_text("a file")
    assert private_folder("code").is_dir()
    if hasattr(os, "getuid") and os.getuid() == 0:
        own.unlink()
        own.mkdir(mode=0o700)
        os.chown(own, 65534, 65534)
        assert private_folder("code") != own


def test_the_manifest_of_a_run_holds_no_seal_where_it_is_read(tiny):
    assert "sha256" in json.loads((tiny.folder / "manifest.json").read_text())
    assert "sha256" not in tiny.open(tiny.folder).manifest
