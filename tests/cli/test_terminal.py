"""What a terminal of 80 columns shows: every verb's tables with ImageNet's long names, colours."""

import contextlib
import csv
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from made_up import sweep as made_up

from circuitcore.bundled import CATEGORIES, IMAGES
from circuitcore.cli.main import run
from circuitcore.cli.tables import rows_text, sweep_text, table
from circuitcore.cli.terminal.layout import MOST, cells, shortened

LONG = [
    "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    "electric ray, crampfish, numbfish, torpedo",
    "brambling, Fringilla montifringilla",
    "banded krait, sea snake from the waters near \u5317\u4eac and \u6771\u4eac, a \U0001f986 too",
]
FEW = ["--extraction-images", "5", "--heldout-images", "5", "--device", "cpu", "--quiet"]
GRID = ["--fc-levels", "0,0.5,0.9", "--conv-levels", "0,0.5"]


ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


class Screen(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self):
        return True

    def getvalue(self):
        return ESCAPES.sub("", super().getvalue())


def shown_on(width, monkeypatch, text):
    """What text() gives for a terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    with contextlib.redirect_stdout(Screen()):
        return ESCAPES.sub("", text())


def said(*arguments, screen):
    out = Screen() if screen else io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        assert run([str(each) for each in arguments]) == 0, err.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs of categories of long names; what a sweep of such names takes as arguments."""
    root = tmp_path_factory.mktemp("long")
    names = [*LONG, *(f"{each} of another name" for each in CATEGORIES[4:])]
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for name, own in zip(LONG, CATEGORIES, strict=False):
            (root / "images" / split / name).symlink_to(IMAGES / split / own)
    (root / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    what = ["--images", root / "images", "--categories", root / "names.txt", *FEW]
    with contextlib.chdir(root):
        for out, threshold in (("runs/first", 0.9), ("runs/lower", 0.5)):
            said("sweep", *what, *GRID, "--threshold", threshold, "-o", out, screen=False)
    return root, what


VERBS = {
    "sweep": ["sweep", "WHAT", *GRID, "-o", "runs/first"],
    "plan": ["plan", "WHAT", *GRID, "--no-probe"],
    "exact plan": ["plan", "WHAT", *GRID, "--exact", "--no-probe", LONG[0]],
    "score": ["score", "WHAT"],
    "scores kept": ["score", "WHAT", "-o", "scores"],
    "extract": ["extract", "runs/first", "--threshold", "0.5", "-o", "runs/lower", "-q"],
    "evaluate": ["evaluate", "runs/first", "-q"],
    "other images": ["evaluate", "runs/first", "--images", "images", "-q"],
    "overlap": ["overlap", "runs/first", "-q"],
    "controls": ["controls", "runs/first", "-q"],
    "stability": ["stability", "runs/first", "--resamples", "5", "-q"],
    "order": ["stability", "WHAT", LONG[0]],
    "structure": ["structure", "runs/first", "-q"],
    "area": ["area", "runs/first", "-q"],
    "compare": ["compare", "runs/first", "runs/lower", "-q"],
    "lesion": ["lesion", "runs/first", "-q"],
    "show": ["show", "runs/first", LONG[0], "-q"],
    "categories": ["ls", "categories", "WHAT"],
    "models": ["ls", "models", "-q"],
    "devices": ["ls", "devices"],
    "runs": ["ls", "runs"],
    "doctor": ["doctor", "-q"],
    "watch": ["watch", "runs/first", "--once"],
}
SENTENCES = ("doctor", "watch", "structure", "show")  # what they begin with
NAMELESS = {
    "plan",
    "exact plan",
    "show",
    "structure",
    "models",
    "devices",
    "runs",
    "doctor",
    "watch",
}


@pytest.mark.parametrize("name", VERBS)
def test_no_line_is_longer_than_80_columns_and_no_row_wraps(name, place, monkeypatch):
    root, what = place
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    given = what[:4] if VERBS[name][0] == "ls" else what
    words = [w for each in VERBS[name] for w in (given if each == "WHAT" else [each])]
    shown, whole = said(*words, screen=True), said(*words, screen=False)
    long = [line for line in shown.splitlines() if cells(line) > 80]
    if name == "show":  # ends in a path, to be copied
        assert long.pop().endswith(".svg")
    assert not long and shown.count("\n") >= 1
    if name not in SENTENCES:
        rows = [text.split("\n\n")[0].partition("\ncolumns left out")[0] for text in (shown, whole)]
        few, every = (text.splitlines() for text in rows)
        assert len(few) == len(every) or len(every) > MOST
    if name not in NAMELESS:
        assert LONG[0] in whole and LONG[0] not in shown
        assert re.search(r"great w\S*.*\u2026", shown)


def test_a_thousand_categories(monkeypatch):
    names = [f"{LONG[n % 3]}, number {n}" for n in range(1000)]
    document = made_up(names)
    shown = shown_on(80, monkeypatch, lambda: sweep_text(document, "table"))
    lines = shown.splitlines()
    assert max(map(cells, lines)) <= 80
    assert "800 rows in the middle are left out; --format csv or a pipe has them" in shown
    assert sum("carcharias" in line or "\u2026" in line for line in lines) == MOST + 1
    whole = sweep_text(document, "table")
    assert all(name in whole for name in names)
    rows = list(csv.DictReader(io.StringIO(sweep_text(document, "csv"))))
    assert [row["category"] for row in rows] == names


@pytest.mark.parametrize("width", [80, 60, 40, 20])
def test_columns_without_room_are_named(width, monkeypatch):
    rows = [{"category": LONG[0], **{f"quantity {n}": 1234.5 for n in range(9)}}]
    shown = shown_on(width, monkeypatch, lambda: rows_text(rows, "table"))
    assert max(map(cells, shown.splitlines())) <= width
    flat = " ".join(shown.split())
    assert "columns left out for want of room" in flat and "quantity 8; --format csv" in flat
    assert f"quantity {0}" in flat.partition("left out")[0] or width == 20
    assert "1234" in rows_text(rows, "table") and "left out" not in rows_text(rows, "table")


def test_a_name_is_cut_where_it_says_least():
    assert shortened("classifier.6", 8) == "classif\u2026"
    assert shortened("classifier.6", 8, end=True) == "\u2026ifier.6"
    assert (
        shortened("\u5317\u4eac\u5317\u4eac", 6) == "\u5317\u4eac\u2026"
        and shortened("ab", 2) == "ab"
    )
    assert [shortened("abc", width) for width in (2, 1, 0)] == ["a\u2026", "\u2026", ""]


SPEAKING = """
import os, time
from circuitcore.cli.progress import progress
from circuitcore.cli.tables import emit, table

with progress(False) as shown:
    time.sleep(0.3)
    shown.start("circuits", 4)
    time.sleep(float(os.environ.get("WORK", "0")))
    shown.advance(1, "Trouser")
    shown.note("something to know")
    time.sleep(0.3)
emit(table(["category", "pruned"], [["Trouser", "90 %"]]))
"""


def on_a_terminal(**environment):
    """What a program that works and prints a table puts on a terminal."""
    own = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    child, fd = pty.fork()
    if not child:
        os.execve(sys.executable, [sys.executable, "-P", "-c", SPEAKING], own)
    said = b""
    with contextlib.suppress(OSError):  # the end
        while part := os.read(fd, 65536):
            said += part
    assert os.waitpid(child, 0)[1] == 0
    os.close(fd)
    return said.decode()


def test_a_terminal_has_a_bar_with_rate_and_end():
    said = on_a_terminal(NO_COLOR="", WORK="1.1")
    assert re.search(r"\x1b\[[\d;]*m", said) and "\x1b[1m category" in said
    drawn = ESCAPES.sub("", said)
    assert "loading libraries, model and images" in drawn
    assert re.search(
        r"\u2501+\u2500+ 1/4 \d+\.\d/min, 0:0\d left, ends (\w+ )?\d\d:\d\d Trouser", drawn
    )


def test_no_color_has_the_bar_without_colours():
    said = on_a_terminal(NO_COLOR="1")
    assert not re.search(r"\x1b\[(1|3[0-7]|38[\d;]*|9[0-7])m", said)
    assert "1/4" in said and "something to know" in said and " category  pruned" in said


def test_a_dumb_terminal_has_lines():
    said = on_a_terminal(TERM="dumb", NO_COLOR="")
    assert "\x1b" not in said and "something to know" in said and "Trouser" in said


def test_a_pipe_has_no_control_characters():
    own = {**os.environ, "TERM": "xterm-256color", "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SPEAKING], capture_output=True, text=True, env=own, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr and done.stderr == "something to know\n"


def test_an_encoding_without_dashes_has_plain_ones():
    code = "from circuitcore.cli.tables import emit, table\nemit(table(['a'], [['b\\u00e9']]))"
    own = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=own, check=True
    )
    assert done.stdout == " a\n --\n b\\xe9\n"


def test_a_table_of_nothing_has_its_headings():
    assert table(["category", "kept"], []) == " category  kept\n " + 14 * "\u2500" + "\n"
