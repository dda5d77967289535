"""Benchmark runs held against each other: what is paired, what is judged, what is refused."""

import json
from pathlib import Path

import pytest
from command import call

from circuitcore.errors import InputError, UsageError
from circuitcore.jobs.profiling.benchmarks import (
    Row,
    Times,
    baseline_name,
    keep_rows,
    read_rows,
)
from circuitcore.jobs.profiling.comparing import compared, counts

BASELINE = Path(__file__).parents[2] / "bench" / "baselines" / "x86_64-2-threads.json"
STEADY = (0.98, 0.99, 1.0, 1.01, 1.02)
SHAKY = (0.6, 0.8, 1.0, 1.3, 1.7)


def row(name="test_it", device="here", factor=1.0, rounds=STEADY, beside=None, **about):
    """A race of ours against a contender that takes ``beside`` times the seconds (None: alone)."""
    times = {"ours": Times.of([factor * each for each in rounds])}
    if beside is not None:
        times["library"] = Times.of([beside * each for each in STEADY])
    return Row(name, device, "ours", times, about)


def verdict(a, b, **how):
    (found,) = compared([a], [b], **how).rows
    return found.verdict


@pytest.mark.parametrize(
    "factor, expected",
    [(1.0, "same"), (1.03, "same"), (1.5, "slower"), (0.6, "faster"), (1.08, "unsure")],
)
def test_beyond_the_noise(factor, expected):
    assert verdict(row(), row(factor=factor)) == expected


def test_within_the_noise_nothing_is_said():
    assert verdict(row(), row(factor=1.2, rounds=SHAKY)) == "unsure"
    assert verdict(row(rounds=SHAKY), row(factor=3.0, rounds=SHAKY)) == "slower"


def test_a_machine_that_is_slower_all_round_is_no_slower_code():
    a, b = row(beside=4.0), row(factor=1.5, beside=6.0)
    (found,) = compared([a], [b]).rows
    assert (found.verdict, found.ratio) == ("unsure", pytest.approx(1.5))
    assert found.beside == pytest.approx(1.5)
    assert verdict(a, row(factor=1.5, beside=4.0)) == "slower"
    assert verdict(a, row(factor=1.0, beside=4.0)) == "same"


def test_between_devices_ratios_are_compared():
    a, b = row(beside=4.0), row(device="there", factor=0.1, beside=0.4)
    (found,) = compared([a], [b]).rows
    assert (found.by, found.verdict) == ("library", "same")
    assert (found.a, found.b) == (pytest.approx(0.25), pytest.approx(0.25))
    (found,) = compared([a], [row(device="there", factor=0.1, beside=0.1)]).rows
    assert (found.verdict, found.ratio) == ("slower", pytest.approx(4.0))
    alone = compared([row()], [row(device="there")])
    assert not alone.rows and "no contender in common" in alone.differing["test_it"]


def test_other_work_is_not_compared():
    found = compared([row(dtype="float32", shape="a")], [row(dtype="bfloat16", shape="a")])
    assert found.differing == {"test_it": "dtype float32 against bfloat16"}
    found = compared([row(shape="a")], [row(shape="b")])
    assert found.differing == {"test_it": "shape a against b"}
    assert compared([row(shape="a")], [row()]).rows  # an old row does not say


def test_rows_of_one_run_only_are_listed():
    found = compared([row("test_a"), row("test_b")], [row("test_b"), row("test_c")])
    assert (found.only_a, found.only_b) == (["test_a"], ["test_c"])
    assert [each.name for each in found.rows] == ["test_b"]
    assert counts(found) == {"faster": 0, "slower": 0, "same": 1, "unsure": 0}
    with pytest.raises(UsageError, match="--within 1"):
        compared([], [], within=1.0)


def test_medians_or_quartiles_alone():
    medians = Row("test_it", "here", "ours", {"ours": Times(1.0, count=3)})
    assert verdict(medians, row(factor=9.0)) == "unsure"
    narrow = Row("test_it", "here", "ours", {"ours": Times(1.0, quartiles=(0.99, 1.01), count=9)})
    wide = Row("test_it", "here", "ours", {"ours": Times(1.0, quartiles=(0.3, 1.9), count=9)})
    assert verdict(narrow, row(factor=1.5)) == "slower"
    assert verdict(wide, row(factor=1.5)) == "unsure"


def test_the_baseline_of_medians_is_still_read():
    rows = {each.name: each for each in read_rows(BASELINE)}
    conv = rows["test_conv_stage"]
    assert conv.device == "x86_64, 2 threads" and conv.ours == "circuitcore"
    assert conv.ratios()["naive"] == pytest.approx(10.53, abs=0.01)
    assert baseline_name(conv.device) == BASELINE.name
    said = call("bench", "compare", BASELINE.stem, BASELINE).stdout
    assert "0 faster, 0 same, 0 slower, 30 unsure" in said and "unknown" in said


def written(path, *rows):
    """A file as pytest-benchmark writes it, as far as it is read."""
    benchmarks = [
        {
            "name": each.name, "fullname": f"bench/x.py::{each.name}", "stats": {"median": 1.0},
            "extra_info": {"race": {
                **each.about, "device": each.device, "ours": each.ours, "note": {},
                "rounds": {name: list(times.rounds) for name, times in each.times.items()},
            }},
        }
        for each in rows
    ]  # fmt: skip
    held = {"machine_info": {}, "commit_info": {"id": "0"}, "benchmarks": benchmarks}
    path.write_text(json.dumps(held))
    return path


def test_the_command(tmp_path):
    a = written(tmp_path / "a.json", row("test_a", beside=4.0), row("test_b"), row("test_gone"))
    b = written(tmp_path / "b.json", row("test_a", factor=1.5, beside=4.0), row("test_b"))
    said = call("bench", "compare", a, b).stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "0 faster, 1 same, 1 slower, 0 unsure" in said and "in A only: test_gone" in said
    call("bench", "compare", a, b, "--fail-over", "1.6")
    said = call("bench", "compare", a, b, "--fail-over", "1.2", code=3)
    assert "slower than 1.2 x: test_a 1.50 x" in said.stderr
    found = json.loads(call("bench", "compare", a, b, "--format", "json").stdout)
    assert [each["verdict"] for each in found["rows"]] == ["slower", "same"]


def test_a_device_without_a_baseline(tmp_path):
    b = written(tmp_path / "b.json", row(device="NVIDIA H100 80GB HBM3"))
    said = call("bench", "compare", b, code=3).stderr
    assert "bench/baselines/NVIDIA-H100-80GB-HBM3.json" in said
    assert "no baseline" in call("bench", "compare", b, "--if-kept").stderr


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        (["nowhere.json"], 3, "x86_64-2-threads"),
        ([BASELINE, BASELINE, BASELINE], 2, "not 3"),
        ([BASELINE, BASELINE, "--fail-over", "0.9"], 2, "--fail-over"),
        ([BASELINE, BASELINE, "--format", "csv"], 2, "table, json"),
        ([BASELINE, Path(__file__)], 3, "no JSON of pytest-benchmark"),
        ([], 2, "bench compare --help"),
    ],
)
def test_runs_that_cannot_be_compared(arguments, code, told):
    assert told in call("bench", "compare", *arguments, code=code).stderr


def test_runs_are_kept_by_device(tmp_path):
    first = written(tmp_path / "1.json", row("test_a"), row("test_b"))
    kept = keep_rows(first, tmp_path / "kept")
    assert kept == tmp_path / "kept" / "here.json"
    again = written(tmp_path / "2.json", row("test_b", factor=2.0), row("test_c"))
    assert keep_rows(again, kept) == kept
    medians = {each.name: each.times["ours"].median for each in read_rows(kept)}
    assert medians == {"test_a": 1.0, "test_b": 2.0, "test_c": 1.0}
    with pytest.raises(InputError, match="nothing to keep"):
        keep_rows(written(tmp_path / "3.json"), kept)


def test_a_benchmark_that_is_no_race(tmp_path):
    """Of any other suite: seconds alone, the device as pytest-benchmark names it."""
    stats = {"median": 2.0, "q1": 1.9, "q3": 2.1, "rounds": 5}
    held = {
        "machine_info": {"cpu": {"brand_raw": "A processor"}}, "commit_info": {"id": "abc"},
        "benchmarks": [{"name": "test_x", "extra_info": {}, "stats": stats}],
    }  # fmt: skip
    path = tmp_path / "it.json"
    path.write_text(json.dumps(held))
    (found,) = read_rows(path)
    assert found.device == "A processor" and found.about == {"commit": "abc"}
    assert found.times["test_x"] == Times(2.0, quartiles=(1.9, 2.1), count=5)
