"""`circuitcore profile`: under torch's profiler, under a stand-in for nsys, and of kept traces."""

import json
import sqlite3
import stat
import sys
from pathlib import Path

import pytest
from command import call

TRACES = Path(__file__).parent.parent / "jobs" / "traces"
QUICK = ["--device", "cpu", "--scoring-images", "1", "--extraction-images", "3",
         "--heldout-images", "3", "--levels", "0,0.5,0.9", "--threshold", "0.1"]  # fmt: skip


@pytest.fixture
def hasty(monkeypatch):
    """What is measured beside the sweep takes a moment."""
    monkeypatch.setattr("circuitcore.engine.probe.SECONDS", 0.01)
    monkeypatch.setattr("circuitcore.jobs.profiling.peaks.SECONDS", 0.01)
    monkeypatch.setattr("circuitcore.jobs.profiling.peaks.SIDE", 256)


def test_a_sweep_is_profiled_and_its_trace_read_again(hasty, tmp_path):
    trace = tmp_path / "trace.json.gz"
    said = call("profile", "--format", "json", "--out", trace, "--", "sweep", "Trouser", *QUICK)
    found = json.loads(said.stdout)
    assert found["schema"] == "circuitcore.profile/1" and found["profiler"] == "torch"
    assert found["command"] == "circuitcore sweep Trouser " + " ".join(QUICK)
    assert 0 <= found["uncovered"] < 0.5 and found["device_busy"] is None
    stages = {tuple(row["path"]): row for row in found["stages"]}
    run, category = ("sweep",), ("sweep", "a category")
    inside = {path[-1] for path in stages if path[:-1] == category}
    assert inside >= {"scoring", "levels", "fc", "conv", "held-out", "random masks", "commit"}
    assert sum(row["seconds"] for path, row in stages.items() if path[:-1] == run) <= (
        stages[run]["seconds"] * (1 + 1e-6)
    )
    layers = {(row["stage"], row["name"]): row for row in found["layers"]}
    conv = layers["conv", "features.0"]
    assert conv["multiply_adds"] > 0 and conv["roofline"] > 0
    assert conv["bound"] in ("matrix", "memory")  # as fast as this machine is just now
    assert layers["fc", "classifier.1"]["multiply_adds"] > 0
    kernels = {row["name"] for row in found["kernels"]}
    assert kernels >= {"circuitcore::masked_chain", "aten::mkldnn_convolution"}
    assert {row["level"] for row in found["levels"] if row["stage"] == "conv"} <= {1, 2}
    parts = {gap["part"]: gap for gap in found["gaps"]}
    assert parts["convolutions"]["predicted"] > 0 and parts["convolutions"]["measured"] > 0
    assert parts["the run"]["measured"] == pytest.approx(found["wall_seconds"])
    again = json.loads(call("profile", "--read", trace, "--format", "json").stdout)
    assert again == found


def test_the_table_of_a_kept_trace_fits_eighty_columns():
    text = call("profile", "--read", TRACES / "cpu.json").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "0.001 s; in no stage: 18.0% of it" in text
    assert "conv1 (conv)" in text and "80%  matrix" in text
    assert "took / planned" in text and "note: made by hand" in text


def test_a_sweep_that_fails_gives_its_own_code(hasty, tmp_path):
    said = call("profile", "--", "sweep", "Trousr", *QUICK, code=2)
    assert "'Trousr'" in said.stderr and not said.stdout
    said = call("profile", "--", "sweep", "--images", tmp_path / "none", code=3)
    assert str(tmp_path / "none") in said.stderr


def test_a_sweep_of_which_a_part_is_done_is_shown_and_gives_its_code(hasty, monkeypatch):
    from circuitcore.errors import InputError
    from circuitcore.jobs import job

    swept = job.swept_circuit

    def one_fails(prepared, unit, *rest):
        if unit == 8:
            raise InputError("no scores")
        return swept(prepared, unit, *rest)

    monkeypatch.setattr(job, "swept_circuit", one_fails)
    said = call("profile", "--", "sweep", "Trouser", "Bag", *QUICK, code=4)
    assert "a category" in said.stdout and "1 of 2 categories failed" in said.stderr


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--", "sweep", "--treshold", "0.8"], "did you mean '--threshold'"),
        (["--", "sweep", "--threshold", "2"], "--threshold"),
        (["--", "extract", "RUN"], "profile runs sweep, not extract"),
        (["--", "sweep", "--workers", "2"], "--workers 1"),
        (["--format", "jsno"], "did you mean 'json'"),
        (["--profiler", "perf"], "auto, torch, nsys"),
        (["--out", "trace.txt"], ".json"),
        (["--out", "nowhere/trace.json"], "there is no folder nowhere"),
        (["--profiler", "torch", "--out", "it.nsys-rep"], ".json"),
        (["--read", "x.json", "--", "sweep"], "no sweep"),
    ],
)
def test_arguments_that_do_not_fit(arguments, told):
    assert told in call("profile", *arguments, code=2).stderr


NSYS = """#!{python}
import sqlite3, sys
arguments = sys.argv[1:]
given = dict(a.split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
with open({log!r}, "a") as log:
    print(*arguments, file=log)
if arguments[0] == "profile":
    open(given["--output"] + ".nsys-rep", "w").close()
    sys.exit({code})
with sqlite3.connect(given["--output"]) as file:
    file.executescript(open({sql!r}).read())
"""


@pytest.mark.parametrize("code", [0, 4])
def test_under_nsys(hasty, tmp_path, monkeypatch, code):
    """A stand-in writes what it was asked, and exports a trace made by hand."""
    log, nsys = tmp_path / "log", tmp_path / "nsys"
    nsys.write_text(
        NSYS.format(python=sys.executable, log=str(log), code=code, sql=str(TRACES / "gpu.sql"))
    )
    nsys.chmod(nsys.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = tmp_path / "kept.nsys-rep"
    said = call("profile", "--profiler", "nsys", "--out", report, "--", "sweep", "Bag", *QUICK,
                code=code)  # fmt: skip
    assert "seen by Nsight Systems" in said.stdout and "gemm_kernel" in said.stdout
    recorded, exported = log.read_text().splitlines()
    assert "--capture-range=nvtx --nvtx-capture=sweep@circuitcore" in recorded
    assert f"--output={tmp_path / 'kept'} " in recorded and "--cuda-graph-trace=node" in recorded
    assert f"circuitcore.cli.main sweep --out {tmp_path}"[:30] in recorded
    assert recorded.endswith(" Bag " + " ".join(QUICK))
    assert exported.startswith("export --type=sqlite") and exported.endswith(str(report))
    assert report.is_file() and sqlite3.connect(report.with_suffix(".sqlite"))
