"""The Python API: the same circuits as the command, the same errors, and nothing left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from command import call, masks
from torchvision import transforms
from torchvision.datasets import ImageFolder

import circuitcore as cc
from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled

GRID = {"fc_levels": "0,0.5,0.9,0.99", "conv_levels": "0,0.5,0.9"}
TWO = ("Trouser", "Bag")


def own_module():
    """The bundled network as a user's module, with a transform of his own."""
    module, names, own = load_bundled()
    steps = [transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(own.mean, own.std)]
    return module, transforms.Compose(steps), names


def own_images():
    return {part: ImageFolder(str(IMAGES / part)) for part in ("train", "val")}


@pytest.fixture(scope="module")
def run(small):
    """The run that `small` made by the command, opened."""
    return cc.open_run(small.folder)


def test_importing_it_is_light():
    code = (
        "import sys, circuitcore as cc\n"
        "heavy = ('torch', 'numpy', 'pydantic', 'pandas', 'matplotlib', 'PIL')\n"
        "assert not [m for m in heavy if m in sys.modules]\n"
        "assert set(cc.__all__) <= set(dir(cc))\n"
        "print(*(getattr(cc, name).__doc__ is not None for name in cc.__all__))"
    )
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert set(said.stdout.split()) == {"True"}


def test_a_sweep_from_python_is_that_of_the_command(small, tmp_path):
    run = cc.sweep(categories=TWO, out=tmp_path / "run", **GRID)
    assert run.folder == tmp_path / "run" and list(run) == list(TWO) and len(run) == 2
    found, wanted = masks(tmp_path / "run"), masks(small.folder)
    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in wanted.items()}
    assert cc.open_run(small.folder)["Bag"].record.circuit == run["Bag"].record.circuit
    assert run.manifest["configuration"] == small.document["run"]["configuration"]


def test_a_module_and_data_sets_in_hand_give_the_circuits_of_the_files(small, tmp_path):
    module, transform, names = own_module()
    model = cc.Model.of(module, transform, names)
    run = cc.sweep(model, own_images(), categories=TWO, out=tmp_path / "run", **GRID)
    found, wanted = masks(tmp_path / "run"), masks(small.folder)
    assert all(np.array_equal(found[k], wanted[k]) for k in wanted)
    for name in TWO:
        ours, theirs = run[name].record, cc.open_run(small.folder)[name].record
        assert ours.stages[0].levels == theirs.stages[0].levels
        assert ours.circuit.heldout == theirs.circuit.heldout
    assert run.manifest["images"]["folder"] == "in hand: ImageFolder"
    with pytest.raises(cc.InputError, match="came in hand"):
        cc.open_run(run.folder).evaluate()
    again = cc.open_run(run.folder, model, own_images())
    assert again.evaluate()[0]["circuit_csa"] == run["Trouser"].record.circuit.heldout.csa
    other = cc.Model.of(module, transforms.Compose([transforms.Resize(20), *transform.transforms]),
                        names)  # fmt: skip
    with pytest.raises(cc.InputError, match="probe_sha256"):
        cc.open_run(run.folder, other, own_images()).evaluate()


def test_a_run_is_a_mapping_and_gives_tables(run, small):
    assert run["Trouser"].unit == 1 == run["1"].unit == run[1].unit
    assert "Bag" in run and "Sandal" not in run and "nothing" not in run
    assert run.get("Sandal") is None and run.get("Bag").unit == 8
    with pytest.raises(KeyError, match="'Sandal' is not done yet"):
        run["Sandal"]
    with pytest.raises(KeyError, match="no category"):
        run["Trowser"]
    frame = run.to_pandas()
    assert list(frame["category"]) == list(TWO)
    assert list(frame["pruned"]) == [c["circuit"]["pruned"] for c in small.document["categories"]]
    curves = run.curves().to_pandas()
    chosen = curves[curves.chosen & (curves.category == "Bag")]
    assert list(chosen.stage) == ["fc", "conv"]
    overlap = run.overlap()
    whole = next(row for row in overlap if row["layer"] == "")
    array = overlap.to_xarray()
    assert array.overlap.sel(layer="", a="Trouser", b="Bag") == whole["overlap"]
    assert array.chance.sel(layer="", a="Bag", b="Trouser") == whole["chance"]
    assert overlap.matrix()[0, 1] == small.document["overlap"]["mean"]
    assert json.loads(run.document.to_json()) == small.document
    splits = run.images().column("split")
    assert {s: splits.count(s) for s in splits} == {
        "scoring": 40, "extraction": 200, "heldout": 300
    }  # fmt: skip
    assert run.verify() == [] and run.report().name == "report.html"


def test_a_notebook_is_shown_the_numbers(run):
    shown = run._repr_html_()
    assert f"{run['Bag'].record.circuit.heldout.csa:.4g}" in shown and "<table>" in shown
    assert f"{run['Bag'].masks['features.0'].sum()}" in run["Bag"]._repr_html_()
    assert "Bag" in repr(run["Bag"]) and "2 of 10" in repr(run)
    assert str(run.folder.parent) not in shown + repr(run)
    assert "overlap" in run.overlap()._repr_html_()


def test_plots_are_axes(run):
    curves = run.plot_curves("Bag")
    drawn = {line.get_label() for line in curves.get_lines()}
    assert {"fc", "conv"} <= drawn and curves.get_title() == "Bag"
    values = run.plot_overlap().images[0].get_array()
    assert sorted(np.ravel(values)) == sorted(np.ravel(run.overlap().matrix()))
    figure = matplotlib.figure.Figure()
    mine = figure.subplots()
    assert run.plot_accuracy(ax=mine) is mine
    matplotlib.pyplot.close("all")


def test_a_plan_scores_and_the_same_errors(tmp_path):
    planned = cc.plan(categories="Trouser", probe=False, **GRID)
    assert (
        0 < planned.fpe < planned.fpe_upper
        and planned.seconds is None
        and planned.memory_bytes > 1e7
    )
    scores = cc.score("bundled", "bundled", "Trouser")
    assert scores["classifier.6"].shape == (1, 768)
    rows = cc.scores(categories="Trouser")
    for row in rows:
        assert row["max"] == float(scores[row["layer"]].max())
    for wrong, kind in (
        ({"bias": "exakt"}, cc.UsageError), ({"images": tmp_path / "no"}, cc.InputError),
        ({"device": "cuda:7"}, cc.DeviceError), ({"categories": ["Trowser"]}, cc.UsageError),
    ):  # fmt: skip
        with pytest.raises(kind) as raised:
            cc.sweep(**{"out": tmp_path / "run", **wrong})
        flags = [word for name, value in wrong.items() if name != "categories"
                 for word in (f"--{name}", str(value))]  # fmt: skip
        said = call("sweep", *wrong.get("categories", ()), *flags, code=kind.exit_code).stderr
        assert said == f"error: {raised.value}\n"
    with pytest.raises(cc.UsageError, match=r"no such option.*'threshold'"):
        cc.sweep(treshold=0.8)
    with pytest.raises(cc.UsageError, match=r"Model.of\(module, .*, not SmallAlexNet"):
        cc.sweep(own_module()[0])
    with pytest.raises(cc.UsageError, match="cannot load again"):
        cc.sweep(cc.Model.of(*own_module()), workers=2)


def test_what_follows_a_sweep(run, tmp_path):
    lower = run.extract(threshold=0.7, out=tmp_path / "lower", categories="Bag")
    assert list(lower) == ["Bag"] and lower.folder == tmp_path / "lower"
    assert lower["Bag"].record.circuit.pruned >= run["Bag"].record.circuit.pruned
    assert len(lower.control_means()) == 0
    kinds = lower.controls().column("control")
    assert lower.control_means().column("control") == list(dict.fromkeys(kinds))
    assert {"circuit", "random", "empty", "complement"} <= set(kinds)
    (judged,) = lower.evaluate()
    assert judged["circuit_csa"] == lower["Bag"].record.circuit.heldout.csa
    (other,) = lower.evaluate(own_images())
    assert other["circuit_csa"] == judged["circuit_csa"]


def state():
    """What of a process a library call must leave as it was."""
    return {
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": np.random.get_state()[1].tobytes(),
        "random": random.getstate(),
        "warnings": list(warnings.filters),
        "numpy errors": np.geterr(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "style": dict(matplotlib.rcParams),
    }


def state_of(module):
    return {
        "modes": [each.training for each in module.modules()],
        "hooks": [len(each._forward_hooks) for each in module.modules()],
        "tensors": {k: (v.device, v.numpy().tobytes()) for k, v in module.state_dict().items()},
        "gradients": [p.requires_grad for p in module.parameters()],
    }


@pytest.mark.parametrize("around", ["nothing", "no_grad", "inference_mode", "autocast", "float64"])
def test_nothing_is_left_behind_and_nothing_of_the_callers_matters(around, small, tmp_path, capfd):
    module, transform, names = own_module()
    module.train()
    called = []
    module.features[0].register_forward_hook(lambda *_: called.append(1))
    contexts = {
        "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16), "nothing": torch.enable_grad,
        "float64": torch.enable_grad,
    }  # fmt: skip
    torch.set_default_dtype(torch.float64 if around == "float64" else torch.float32)
    try:
        with contexts[around]():
            before, own = state(), state_of(module)
            model = cc.Model.of(module, transform, names)
            run = cc.sweep(model, own_images(), categories="Bag", out=tmp_path / "run", **GRID)
            rows = run.controls()
            with run["Bag"].applied(module):
                assert state_of(module)["tensors"] != own["tensors"]
            assert state() == before and state_of(module) == own
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(called) <= 3  # where it is checked that the module does what its layers say
    assert capfd.readouterr() == ("", "")
    wanted = masks(small.folder)
    assert all(np.array_equal(bits, wanted[k]) for k, bits in masks(tmp_path / "run").items())
    assert len(rows) == 5


def test_in_a_thread_with_progress_and_again(small, tmp_path):
    told, found = [], []

    def work():
        found.append(cc.sweep(categories="Bag", out=tmp_path / "run", progress=told_, **GRID))

    def told_(*state):
        told.append(state)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 2 and found[0]["Bag"].record == found[1]["Bag"].record
    assert ("circuits", 0, 1, "") in told and ("circuits", 1, 1, "Bag") in told
    assert told.count(("circuits", 1, 1, "Bag")) == 1  # the second call found it done


@pytest.mark.skipif("site-packages" not in cc.__file__, reason="mypy follows no editable install")
def test_types_are_known_to_a_checker(tmp_path):
    user = tmp_path / "user.py"
    user.write_text(
        "import circuitcore as cc\n"
        "run = cc.sweep(categories=['Bag'])\n"
        "reveal_type(run)\nreveal_type(run['Bag'].masks)\nreveal_type(cc.plan().fpe)\n"
    )
    checked = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--cache-dir",
               str(tmp_path / "cache"), str(user)]  # fmt: skip
    said = subprocess.run(checked, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "circuitcore.api.run.Run" in said and "Tensor" in said and "float" in said, said


def test_names_that_are_numbers_are_names_first(tmp_path):
    """Sorted as text, "10" is unit 2: what is asked for and what is given must agree."""
    from circuitcore.inputs.categories import Category, finder, select

    names = sorted(map(str, range(12)))
    listed = [Category(unit, name, name) for unit, name in enumerate(names)]
    find = finder(listed)
    for category in listed:
        assert find(category.name) is category and find(category.index) is category
        assert select(listed, [category.name]) == [category]
    twice = [Category(0, "x", "a"), Category(1, "x", "b"), Category(2, "X", "c")]
    assert finder(twice)("X").index == 2 and finder(twice)("b").index == 1
    with pytest.raises(cc.UsageError, match="two categories are called 'x': give a folder, 'a'"):
        finder(twice)("x")


def test_what_is_not_what_it_seems_is_refused(run, tmp_path):
    with pytest.raises(cc.UsageError, match="false_alarm_norm: only device, gpu"):
        run.evaluate(false_alarm_norm="other")
    with pytest.raises(cc.UsageError, match="--threshold"):
        cc.sweep(threshold=float("inf"))
    with pytest.raises(cc.UsageError, match="Model.of"):
        cc.open_run(run.folder, model=own_module()[0])
    with pytest.raises(cc.UsageError, match="progress"):
        cc.plan(probe=False, progress=5)
    with pytest.raises(cc.UsageError, match="preset 'papr'"):
        cc.sweep(preset="papr")
    assert cc.open_run(run.folder) == run and run["Bag"] == run[8] != run["Trouser"]


def test_torch_keeps_its_threads(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cc.plan(probe=False, exact=True, categories="Bag", levels="0,0.9", extraction_images=3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_records_are_read_one_after_another(run, small, monkeypatch):
    from circuitcore.runs import folder

    read, own = [], folder.read_record
    monkeypatch.setattr(folder, "read_record", lambda path: read.append(path) or own(path))
    each = run.each_record()
    first = next(each)
    assert len(read) == 1
    found = [json.loads(r.model_dump_json(by_alias=True)) for r in (first, *each)]
    assert found == small.document["categories"]


def test_pairs_are_rows_when_they_are_asked_for(run, monkeypatch):
    import pyarrow.parquet

    from circuitcore.api import table
    from circuitcore.cli import tables

    rows = pyarrow.parquet.read_table(run.folder / "overlap.parquet").to_pylist()
    found = run.overlap()
    assert list(found) == rows and len(found) == len(rows)
    assert found[0] == rows[0] and found[-1] == rows[-1] and list(found[1:3]) == rows[1:3]
    with pytest.raises(IndexError):
        found[len(rows)]
    assert list(found.of_layer("features.3")) == [r for r in rows if r["layer"] == "features.3"]
    with pytest.raises(cc.UsageError, match="no layer"):
        found.of_layer("features.99")
    assert found.to_pandas().to_dict("records") == rows
    whole = {
        form: call("overlap", run.folder, "--format", form).stdout for form in ("csv", "jsonl")
    }
    monkeypatch.setattr(table, "BATCH", 2)
    monkeypatch.setattr(tables, "PART", 3)
    assert list(found) == rows
    for form, text in whole.items():
        assert call("overlap", run.folder, "--format", form).stdout == text
    assert [json.loads(line) for line in whole["jsonl"].splitlines()] == rows
    assert len(whole["csv"].splitlines()) == 1 + len(rows)
