"""Rate, time left and expected end; what is drawn of them; compiling is told."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from circuitcore import progress as told
from circuitcore.cli import progress
from circuitcore.cli.progress import COMPILING, LOADING, Lines, drawn
from circuitcore.cli.terminal.layout import cells
from circuitcore.progress import Pace, clock, end_of, rate_in_words

FIRST = """
import importlib.abc, os, sys
from circuitcore.cli import main, progress

def spoke(quiet):
    print("spoke", flush=True)
    os._exit(0)

class Heavy(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("torch", "numba", "scipy", "pyarrow"):
            print(f"loads {name}", flush=True)
            os._exit(1)

progress.progress = spoke
sys.meta_path.insert(0, Heavy())
main.main(sys.argv[1:])
"""


@pytest.fixture
def clocks(monkeypatch):
    """Both clocks stand still until they are moved."""
    now = SimpleNamespace(seconds=1000.0, wall=1_700_000_000.0)

    def move(seconds):
        now.seconds += seconds
        now.wall += seconds

    monkeypatch.setattr(told.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(told.time, "time", lambda: now.wall)
    return move


def test_pace_is_of_what_is_done(clocks):
    pace = Pace("circuits", 10)
    assert pace.rate is None and pace.left is None and pace.said() == ""
    clocks(30)
    pace.count(2, "Trouser")
    assert (pace.rate, pace.left, pace.elapsed) == (2 / 30, 120, 30)
    clocks(20)  # at work on the third: 100 s to go
    assert pace.left == 100 and pace.rate == 2 / 30
    pace.count(0, "compiling")
    assert pace.detail == "compiling" and pace.left == 100
    clocks(500)
    assert pace.left == 0  # later than was expected
    pace.count(8)
    assert pace.said() == rate_in_words(10 / 550)


def test_a_total_that_is_not_known_has_no_end(clocks):
    pace = Pace("images", 0)
    clocks(2)
    pace.count(5)
    assert pace.left is None and pace.said() == "2.5/s"


@pytest.mark.parametrize(
    ("rate", "words"),
    [(1234.0, "1,234/s"), (1.0, "1.0/s"), (0.5, "30.0/min"), (1 / 60, "1.0/min"),
     (1 / 600, "6.0/h"), (1 / 36000, "0.1/h")],
)  # fmt: skip
def test_rates(rate, words):
    assert rate_in_words(rate) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0:00"), (9, "0:09"), (59.6, "1:00"), (725, "12:05"), (11525, "3:12:05"),
     (200_000, "2 d 7 h")],
)  # fmt: skip
def test_times(seconds, words):
    assert clock(seconds) == words


def test_the_end_is_by_the_clock_on_the_wall(clocks, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:  # 2023-11-14, a Tuesday, 22:13:20
        found = [end_of(seconds) for seconds in (60, 7200, 3 * 86400, 30 * 86400)]
        assert found == ["22:14", "Wed 00:13", "Fri 22:13", "14 Dec 22:13"]
    finally:
        monkeypatch.undo()
        time.tzset()


DETAILS = {"none": "", "long": "great white shark, white shark", "wide": "\u5317\u4eac" * 30}


@pytest.mark.parametrize("width", [200, 80, 60, 40, 20, 10])
@pytest.mark.parametrize("what", ["circuits", "decoding, unpruned network", LOADING])
@pytest.mark.parametrize("total", [0, 10, 50_000])
@pytest.mark.parametrize(
    "detail", ["", "great white shark, white shark, man-eater", "\u5317\u4eac" * 30]
)
def test_the_bar_is_one_line_of_any_terminal(clocks, width, what, total, detail):
    pace = Pace(what, total)
    for _ in range(3):
        line = drawn(pace, width, True).plain
        assert cells(line) <= max(width, 1) and "\n" not in line
        if width >= 80:
            assert line.startswith(what) and (not total or f"/{total:,}" in line)
        clocks(3000)
        pace.count(total // 3, detail)
    if width == 200 and total:
        assert "left, ends" in line and (detail[:6] in line)


def test_lines_say_rate_and_end(clocks):
    lines = Lines()
    lines._pace = Pace("circuits", 10)
    clocks(60)
    lines.advance(2, "Trouser")
    clocks(1)
    assert lines.line().startswith("circuits 2/10, Trouser, 61 s, 2.0/min, 3:59 left, ends ")


def test_compiling_is_said_once_and_shown(capsys):
    with Lines() as shown:
        assert shown.line().startswith(f"{LOADING}, ")
        shown.start("circuits", 2)
        told.compiling("scan_range")
        told.compiling("fold")
        assert ", compiling fold, " in shown.line()
    told.compiling("nobody hears")
    assert capsys.readouterr().err == f"{COMPILING}\n"


def test_numba_tells_of_what_is_compiled(tmp_path, monkeypatch):
    """A function of circuitcore's that is in no cache yet."""
    import numba

    from circuitcore.kernels.compilers import numba_jit

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def twice(x):
        return x + x

    twice.__module__ = "circuitcore.kernels.twice"
    heard = []
    with told.told_of_compiling(heard.append):
        assert numba_jit()(twice)(21) == 42
    assert heard == ["twice"]


def test_a_terminal_has_a_bar_and_other_places_lines(monkeypatch):
    class Screen:
        def isatty(self):
            return True

    monkeypatch.setattr(progress.sys, "stderr", Screen())
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.progress(False), progress.Bar)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.progress(False), progress.Lines)
    assert isinstance(progress.progress(True), progress.Quiet)


@pytest.mark.parametrize("verb", ["sweep", "plan", "score", "extract", "evaluate", "overlap",
                                  "controls", "report", "export", "stability", "structure", "area",
                                  "compare", "lesion", "reproduce", "ls", "doctor", "verify",
                                  "kernels", "tune", "worker", "watch", "show"])  # fmt: skip
def test_every_verb_speaks_before_it_loads_torch(verb):
    """Importing torch alone takes seconds: by then the bar is there."""
    words = {"compare": ["a", "b"], "export": ["a", "Bag"], "reproduce": ["vss"], "ls": ["devices"],
             "extract": ["a", "--threshold", "0.8"]}  # fmt: skip
    alone = ("sweep", "plan", "score", "doctor", "kernels", "tune")
    arguments = words.get(verb, [] if verb in alone else ["a"])
    done = subprocess.run(
        [sys.executable, "-P", "-c", FIRST, verb, *arguments], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[:1] == ["spoke"], done.stderr[-2000:]
