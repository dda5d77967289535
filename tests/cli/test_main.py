"""The command line: verbs, formats, and that nothing heavy is loaded before a verb runs."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jsonschema
import pytest
from made_up import NAMES, sweep

import circuitcore
from circuitcore.cli.machine import VERBS as MACHINE_VERBS
from circuitcore.cli.main import run
from circuitcore.cli.method import VERBS as METHOD_VERBS
from circuitcore.cli.progress import Lines, Quiet
from circuitcore.cli.science import VERBS as SCIENCE_VERBS
from circuitcore.cli.tables import cell, plain, size
from circuitcore.options import Options
from circuitcore.records import json_schema

HEAVY = ("torch", "torchvision", "pydantic", "numpy", "matplotlib", "pyarrow", "rich", "kernels")


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


@pytest.fixture
def swept(monkeypatch):
    """`sweep` answers with a made-up document and remembers what it was asked."""
    asked = SimpleNamespace()

    def answer(*, categories, progress, **options):
        options["categories"] = options.pop("category_file")
        asked.options, asked.wanted = Options(**options), list(categories)
        progress.note("something to know")
        found = sweep(undefined=("Trouser",))
        return SimpleNamespace(document=found, each_record=lambda: iter(found.categories))

    monkeypatch.setattr(circuitcore, "sweep", answer, raising=False)
    return asked


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["launch", "-h"]])
def test_help_loads_nothing_heavy(arguments):
    done = python(
        "import sys\nfrom circuitcore.cli.main import run\n"
        f"code = run({arguments})\n"
        f"print(code, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    assert done.stderr.strip() == "0 []"
    assert done.stdout.startswith("Usage: circuitcore")


def test_help_lists_every_verb(capsys):
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    for verb in [v.__name__ for v in (*METHOD_VERBS, *SCIENCE_VERBS, *MACHINE_VERBS)]:
        assert f"\n  {verb} " in said


def test_sweep_help_shows_sections_choices_and_defaults(capsys):
    assert run(["sweep", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("What is swept:", "The method:", "--stop first-crossing|sparsest-above",
                 "--bias matched|exact|none|sgd", "a fraction of the reference [0.9]",
                 "-o, --out RUN"):  # fmt: skip
        assert part in said


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"circuitcore {circuitcore.__version__}\n"


def test_flags_reach_the_sweep(swept, capsys):
    assert run(["sweep", "Trouser", "3", "--threshold", "0.8", "--gpu", "0", "-q", "-o", "r"]) == 0
    assert swept.wanted == ["Trouser", "3"]
    assert (swept.options.threshold, swept.options.gpu, str(swept.options.out)) == (0.8, 0, "r")
    assert capsys.readouterr().err == ""


def test_table_names_what_matters(swept, capsys):
    assert run(["sweep"]) == 0
    said = capsys.readouterr()
    assert said.err == "something to know\n"
    lines = said.out.splitlines()
    shirt = next(line for line in lines if "T-shirt" in line)
    assert shirt.split()[1:] == [
        "90.50", "%", "0.85", "0.90", "2", "1", "0.900", "0.72-1.05", "0.80",
    ]  # fmt: skip
    shown = [plain(name) for name in NAMES]  # the widest decides the first column
    width = max(map(len, lines[: len(NAMES) + 2]))
    assert width - max(map(len, shown)) + len("T-shirt/top") <= 80
    undefined = next(line for line in lines if "Trouser" in line)
    assert undefined.split()[1:] == ["NA", "NA", "0.90", "NA", "1", *["NA"] * 3]
    assert "two\\nlines\\x07" in said.out and "1 undefined (NA): reference not positive" in said.out
    assert "run folder runs/made-up" in said.out


def test_json_is_the_document_and_nothing_else(swept, capsys):
    assert run(["sweep", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json_schema())
    assert [c["category"] for c in document["categories"]] == NAMES


def test_json_lines_are_categories(swept, capsys):
    assert run(["sweep", "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["category"] for row in rows] == NAMES


def test_csv_is_flat_and_safe_to_open(swept, capsys):
    assert run(["sweep", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(NAMES)
    assert rows[0]["csa_ratio"] == rows[0]["file"] == "NA"
    assert rows[3]["category"].startswith("'=cmd|") and rows[1]["heldout_false_alarms"] == "2"
    assert rows[1]["csa_ratio_low"] == "0.7"


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1+1", "@SUM", "\t=1"])
def test_no_cell_is_a_formula(start):
    assert not cell(start).startswith(("=", "+", "-", "@", "\t"))


def test_numbers_are_cells_as_they_are():
    assert cell(-1.5) == -1.5 and cell(None) == "NA"


def test_a_name_cannot_move_the_cursor():
    assert plain("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def test_print_config_is_all_that_is_printed(swept, capsys):
    assert run(["sweep", "--preset", "vss", "--print-config"]) == 0
    said = capsys.readouterr()
    assert 'stop = "sparsest-above"' in said.out and said.err == ""
    assert not hasattr(swept, "options")


def test_levels_out_of_order_are_sorted_and_said_so(swept, capsys):
    assert run(["sweep", "--levels", "0.9,0.5,0.5"]) == 0
    assert swept.options.grid("fc") == (0, 0.5, 0.9)
    assert "--levels: sorted, repeated ones dropped, the unpruned level added" in (
        capsys.readouterr().err
    )


def test_plan_in_words_and_as_json(monkeypatch, capsys):
    step = SimpleNamespace(what="fc stage", count=31, multiply_adds=10**9, bytes=10**6, fpe=2.5)
    planned = SimpleNamespace(
        device="cpu", categories=10, fpe=3.0, fpe_upper=9.0, shared_fpe=1.0,
        multiply_adds=10**10, memory_bytes=10**8,
        disk_bytes=10**6, seconds=None, steps=[step], exact=[], target=None,
        model_dump_json=lambda indent=None: json.dumps({"fpe": 3.0}),
    )  # fmt: skip
    monkeypatch.setattr(circuitcore, "plan", lambda **asked: planned, raising=False)
    assert run(["plan", "--no-probe"]) == 0
    said = capsys.readouterr().out
    assert "fc stage" in said and "at most 9.0" in said and "not probed" in said
    assert run(["plan", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fpe": 3.0}


def test_devices_are_listed(capsys):
    assert run(["ls", "devices", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["device"] == "cpu"


def test_models_are_listed(capsys):
    assert run(["ls", "models", "--format", "csv"]) == 0
    said = capsys.readouterr().out
    assert "\nbundled," in said and "\ntv:alexnet,IMAGENET1K_V1\n" in said


def test_runs_are_listed(tmp_path, capsys):
    assert run(["ls", "runs", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing\n"


def test_doctor_has_one_line_a_check(monkeypatch, capsys):
    from circuitcore.cli import doctor

    monkeypatch.setattr(doctor, "_example", lambda: doctor.Check("ok", "example", "10"))
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert any("torch: " in line for line in lines) and any("cpu (" in line for line in lines)

    def broken():
        raise OSError("gone")

    monkeypatch.setattr(doctor, "_example", broken)
    assert run(["doctor"]) == 5
    assert "failed   broken: OSError: gone" in capsys.readouterr().out


def test_lines_say_how_far_it_is(capsys):
    with Lines(every=0.01) as shown:
        shown.start("circuits", 10)
        shown.advance(3, "Trouser")
        shown.note("a note")
        time.sleep(0.2)
    said = capsys.readouterr()
    assert said.out == ""
    assert "a note\n" in said.err and "circuits 3/10, Trouser, 0 s\n" in said.err


def test_quiet_drops_notes_too(capsys):
    with Quiet() as shown:
        shown.start("circuits", 10)
        shown.advance()
        shown.note("a note")
    assert capsys.readouterr() == ("", "")


def test_sizes_in_words():
    assert [size(n) for n in (None, 12, 1500, 7.1e9, 2e12)] == [
        "NA", "12 B", "1.5 kB", "7.1 GB", "2.0 TB",
    ]  # fmt: skip


def test_the_verbs_are_those_promised():
    promised = """sweep plan score extract evaluate overlap controls report export
        stability structure area compare lesion
        ls doctor verify kernels tune bench profile worker launch watch"""
    assert [v.__name__ for v in (*METHOD_VERBS, *SCIENCE_VERBS, *MACHINE_VERBS)] == promised.split()


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "circuitcore.cli.main", "sweep", "--help"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


# A verb that works until it is stopped, without what a real one imports.  Short sleeps: a signal
# that comes just before a system call does not interrupt it.
ENDLESS = """
import signal, sys, time
import circuitcore
from circuitcore.cli.main import main

def sweep(**_):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

circuitcore.sweep = sweep
"""
SLOW_EXIT = """
class Slow:
    def __del__(self, clock=time.monotonic):
        until = clock() + 1
        while clock() < until:
            pass

sys.modules["slow"] = Slow()
signal.alarm = lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds / 20)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("more", ["", SLOW_EXIT], ids=["at once", "slow exit"])
def test_stopped_from_outside(more, number, code):
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", ENDLESS + more + "main(['sweep'])"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    assert child.returncode == code
    assert "goes on where it stopped" in said and "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_exception_that_is_lost_does_not_keep_it_running(number, code):
    """As C code loses one that is raised in its callback: printed, and the work goes on."""
    lost = """
class Deaf:
    def __del__(self):
        sweep()

def deaf(**_):
    while True:
        Deaf()

circuitcore.sweep = deaf
"""
    hurry = "alarm = signal.alarm\nsignal.alarm = lambda seconds: alarm(min(seconds, 1))\n"
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", ENDLESS + lost + hurry + "main(['sweep'])"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    child.communicate(timeout=120)
    assert child.returncode == code


def test_a_real_sweep_of_one_category_and_what_follows_it(tmp_path, capsys):
    out = tmp_path / "runs" / "r"
    given = ["sweep", "Sandal", "--levels", "0.5,0.9", "--extraction-images", "5",
             "--heldout-images", "5", "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert run([*given, "--format", "json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    jsonschema.validate(document, json_schema())
    assert [c["category"] for c in document["categories"]] == ["Sandal"]

    assert run([*given, "--format", "json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["categories"] == document["categories"]
    assert "1 of 1 categories are done already" in again.err

    assert run([*given, "--threshold", "0.8"]) == 3
    refused = capsys.readouterr()
    assert "threshold: 0.9 there, 0.8 now" in refused.err and refused.out == ""

    assert run(["verify", str(out)]) == 0
    assert capsys.readouterr().out == "intact: 1 circuits\n"
    assert run(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"
    first = (out / "report.html").read_bytes()
    assert run(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == first
    capsys.readouterr()
    assert run(["ls", "runs", "--root", str(out.parent), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["done"] == 1
    assert run(["overlap", str(out), "--format", "csv"]) == 0

    unit = next(out.glob("units/*/*.safetensors"))
    content = bytearray(unit.read_bytes())
    content[-1] ^= 1
    unit.write_bytes(content)
    capsys.readouterr()
    assert run(["verify", str(out)]) == 3
    assert capsys.readouterr().out != ""
