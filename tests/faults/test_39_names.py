"""39 and 41: names that are code elsewhere; a home that cannot be written to, no network."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import sweep_tiny
from command import call

NAMES = ("<script>alert(1)<", "=cmd| 'x'!A0", "two\nlines \u00e9 \U0001f986")


@pytest.fixture(scope="module")
def named(tiny_images, tmp_path_factory):
    """A run of categories of these names, from folders of them: (run, names as they are)."""
    from dataclasses import replace

    import circuitcore

    root = tmp_path_factory.mktemp("named") / "images"
    for part in ("train", "val"):
        for old, new in zip(sweep_tiny.CATEGORIES, NAMES, strict=True):
            shutil.copytree(tiny_images / part / old, root / part / new)
    model = replace(sweep_tiny.tiny_model(tiny_images), categories=NAMES)
    return circuitcore.sweep(model, root, out=root.parent / "run", **sweep_tiny.OPTIONS)


def test_39_names_are_right_on_disk_and_escaped_where_they_would_be_code(named):
    assert list(named) == list(NAMES)
    assert {row["category"] for row in named.images()} == set(NAMES)
    page = named.report().read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    own = re.findall(r"<script([^>]*)>(.{12})", page, flags=re.S)
    assert [a for a, _ in own] == [' type="application/json" id="data"', ""], "the page's own alone"
    assert own[1][1].startswith('"use strict"')
    text = call("overlap", named.folder, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert not [cell for row in rows for cell in row.values() if cell.startswith("=")]
    assert named.verify(sample=0) == []


def test_39_a_table_has_a_line_a_row_whatever_it_is_called(named):
    said = call("overlap", named.folder).stdout
    assert sum("script" in line or "cmd" in line for line in said.splitlines()) == 3


def test_41_without_a_home_that_can_be_written_and_without_network(tiny, tmp_path):
    """Whatever it keeps goes elsewhere; a socket to anywhere fails."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_):\n    raise OSError(101, 'Network is unreachable')\n"
        "socket.socket.connect = refuse\n"
    )
    own = os.environ | {
        "PYTHONPATH": str(tmp_path), "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere",
    }  # fmt: skip
    own.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-P", sweep_tiny.__file__, tiny.images, tmp_path / "run",
         tmp_path / "launches", json.dumps(sweep_tiny.OPTIONS)],
        env=own, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tiny.open(tmp_path / "run")) == ["middle"]
