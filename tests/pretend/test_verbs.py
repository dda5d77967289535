"""Every verb of the library and of the command line on the second of two pretended devices."""

import json
import math

import pytest
from command import call
from pretend.device import pretended

import circuitcore

FEW = ["--scoring-images", 4, "--extraction-images", 20, "--heldout-images", 20]
LEVELS = ["--fc-levels", "0,0.5,0.9,0.99", "--conv-levels", "0,0.5,0.9"]


@pytest.fixture(scope="module")
def cuda():
    with pretended() as made:
        yield made


@pytest.fixture(scope="module")
def run(cuda, tmp_path_factory):
    """Two categories swept on cuda:1."""
    folder = tmp_path_factory.mktemp("verbs") / "run"
    call("sweep", "Trouser", "Bag", *FEW, *LEVELS, "--gpu", 1, "--out", folder, "--format", "json")
    return folder


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The same on the CPU."""
    folder = tmp_path_factory.mktemp("verbs-cpu") / "run"
    call("sweep", "Trouser", "Bag", *FEW, *LEVELS, "--device", "cpu", "--out", folder, "-q")
    return folder


def rows(*arguments):
    return json.loads(call(*arguments, "--format", "json").stdout)


def alike(here, there):
    """Equal but for rounding, and for what is measured."""
    assert type(here) is type(there)
    if isinstance(here, dict):
        assert here.keys() == there.keys()
        for name in here.keys() - {"seconds", "memory_bytes", "folder"}:
            alike(here[name], there[name])
    elif isinstance(here, list):
        assert len(here) == len(there)
        for left, right in zip(here, there, strict=True):
            alike(left, right)
    elif isinstance(here, float):
        assert math.isclose(here, there, rel_tol=1e-4, abs_tol=1e-4)
    else:
        assert here == there


@pytest.mark.parametrize("verb", ["evaluate", "controls", "overlap", "lesion"])
def test_verbs_of_a_run(verb, run, on_cpu):
    engine = [] if verb == "overlap" else ["--device", "cuda:1"]
    on = [] if verb == "overlap" else ["--device", "cpu"]
    here, there = rows(verb, run, *engine), rows(verb, on_cpu, *on)
    if verb == "controls":  # a random mask is drawn on its device, and is another one
        here, there = ([r for r in rows if r["control"] != "random"] for rows in (here, there))
    alike(here, there)


def test_verbs_of_a_run_to_the_mean(cuda, tmp_path):
    """Of one category at few levels, each with the means of its own run."""
    few = "Bag", *FEW, "--levels", "0,0.8", "--ablate", "mean", "--dtype", "float32"
    for name, device in (("cuda", "cuda:1"), ("cpu", "cpu")):
        call("sweep", *few, "--device", device, "--out", tmp_path / name, "-q")
    for verb in ("evaluate", "lesion", "controls"):
        here, there = (
            [row for row in rows(verb, tmp_path / name, "--device", device)
             if row.get("control") != "random"]
            for name, device in (("cuda", "cuda:1"), ("cpu", "cpu"))
        )  # fmt: skip
        alike(here, there)


@pytest.mark.parametrize("verb", ["stability", "score"])
def test_verbs_of_scores(verb, cuda):
    asked = [verb, "Trouser", *FEW[:2]]
    cuda.counts.clear()
    alike(rows(*asked, "--device", "cuda:1"), rows(*asked, "--device", "cpu"))
    assert cuda.counts.torch.total()


def test_extract_again(run, on_cpu, tmp_path):
    for folder, device in ((run, "cuda:1"), (on_cpu, "cpu")):
        call(
            "extract",
            folder,
            "--threshold",
            0.5,
            "--device",
            device,
            "--out",
            tmp_path / device[:3],
        )
    found, wanted = (circuitcore.open_run(tmp_path / name) for name in ("cud", "cpu"))
    for name in wanted:
        assert found[name].record.circuit.kept_weights == wanted[name].record.circuit.kept_weights
        assert (
            found[name].record.circuit.extraction.hit == wanted[name].record.circuit.extraction.hit
        )


@pytest.mark.parametrize("extra", [[], ["--exact"], ["--no-probe"]])
def test_plan(extra, cuda):
    planned = rows("plan", "Trouser", *FEW, *LEVELS, "--device", "cuda:1", *extra)
    assert planned["device"] == "cuda:1" and planned["fpe"] > 0


def test_what_needs_no_device_of_its_own(run, monkeypatch):
    assert "report.html" in call("report", run).stdout
    assert "intact" in call("verify", run).stdout
    assert call("export", run, "Bag").stdout.count("safetensors") >= 1
    listed = rows("ls", "devices")
    assert [row["device"] for row in listed] == ["cuda:0", "cuda:1", "cpu"]
    monkeypatch.setattr("circuitcore.kernels.selftest.collect", list)  # has tests of its own
    monkeypatch.setattr("circuitcore.kernels.verdicts.keep", lambda device, found: None)
    assert "cuda:1 (Pretended H100)" in call("doctor").stdout


def test_only_the_second_device_computes(cuda, run):
    assert not cuda.memory.peak[0]


def test_a_device_that_is_not_there(cuda):
    said = call("sweep", "--device", "cuda:7", code=5).stderr
    assert "no device cuda:7" in said and "cuda:1 (Pretended H100)" in said


def test_readings_of_the_published_text(cuda, tmp_path):
    few = [*FEW, "--levels", "0,0.9", "--format", "json"]
    found = {}
    for device in ("cuda:1", "cpu"):
        folder = tmp_path / device.replace(":", "-")
        said = call("reproduce", "paper", "Trouser", "Bag", *few, "--device", device, "-o", folder)
        found[device] = json.loads(said.stdout)
    for here, there in zip(found["cuda:1"]["cells"], found["cpu"]["cells"], strict=True):
        # costs are those of other executors, random masks others, the rest is the method's
        for name in ("reading", "categories", "undefined", "pruned", "heldout_hit", "ratio"):
            alike(here[name], there[name])
        alike(here["overlap"], there["overlap"])
    assert cuda.counts.torch.total()
