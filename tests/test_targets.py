"""Runs of other targets than categories, from the command line and from Python, end to end."""

import csv
import io
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from command import call, masks
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr

import circuitcore as cc
from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.inputs.targets import POOL
from circuitcore.records import json_schema

COUNTS = ["--extraction-images", "60", "--heldout-images", "40"]
FEW = ["--levels", "0,0.1,0.3,0.6", *COUNTS]
TARGET = ["--target", "features.3:4", "--target", "features.3:5"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(run folder, document) of two channels."""
    folder = tmp_path_factory.mktemp("targets") / "run"
    said = call("sweep", *TARGET, *FEW, "--out", folder, "--format", "json")
    return folder, json.loads(said.stdout)


def input_of(names):
    """Images of the example as the network's input."""
    from PIL import Image

    _, _, own = load_bundled()
    pixels = [np.array(Image.open(Path(IMAGES) / name).convert("L")) for name in names]
    return (torch.from_numpy(np.stack(pixels)).float()[:, None] / 255 - own.mean[0]) / own.std[0]


def peak(module, images, unit):
    """The largest value of a channel of features.3 on each image."""
    with torch.no_grad():
        return module.features[:4](images)[:, unit].amax((1, 2)).numpy()


def test_the_document_says_how_well_circuits_follow(swept):
    folder, document = swept
    jsonschema.validate(document, json_schema())
    assert document["schema"] == "circuitcore.targets/1"
    assert [t["category"] for t in document["targets"]] == ["features.3:4", "features.3:5"]
    images = cc.open_run(folder).images()
    split = {row["path"]: row["split"] for row in images}
    assert len(split) == len(images) == 32 * 10 + 60 + 40 and set(images.column("category")) == {""}
    for target in document["targets"]:
        (stage,) = target["stages"]
        assert (target["judge"], target["pool"], stage["threshold"]) == ("correlation", "max", 0.9)
        values = [level["value"] for level in stage["levels"]]
        assert values[0] == 1 and all(level["images"] == 60 for level in stage["levels"])
        assert target["circuit"]["extraction"] == values[stage["chosen"]] >= 0.9
        assert stage["planned_multiply_adds"] == stage["multiply_adds"] > 0
        low, high = target["circuit"]["heldout_ci95"]
        assert low < target["circuit"]["heldout"] < high
        assert target["random_masks"]["extraction"] < target["circuit"]["extraction"]
        assert {split[name] for name in target["scoring_images"]} == {"scoring"}
    summary = document["summary"]
    mean = np.mean([t["circuit"]["heldout"] for t in document["targets"]])
    assert summary["mean_heldout"] == pytest.approx(mean) and summary["undefined"] == {}
    assert document["overlap"]["pairs"] == 1
    assert document["run"]["shared_fpe"] == pytest.approx(1 + 32 * 10 / 60)


def test_the_exported_network_has_the_circuits_values(swept, tmp_path):
    folder, document = swept
    run = cc.open_run(folder)
    names = [row["path"] for row in run.images() if row["split"] == "heldout"]
    images, (plain, _, _) = input_of(names), load_bundled()
    circuit = run["features.3:5"]
    state, own = circuit.export(tmp_path / "c.safetensors")
    module, _, _ = load_bundled()
    module.load_state_dict(load_file(state))
    value = document["targets"][1]["circuit"]["heldout"]
    unpruned = peak(plain, images, 5)
    for pruned in (module, circuit.apply(plain)):
        assert pearsonr(peak(pruned, images, 5), unpruned).statistic == pytest.approx(
            value, abs=1e-5
        )
        for name in ("features.6", "classifier.6"):
            kept = pruned.get_submodule(name).weight
            assert torch.equal(kept, plain.get_submodule(name).weight)
    assert load_file(own)["features.3.weight"][5].sum() == circuit.masks["features.3"].sum()
    with circuit.applied(plain) as there:
        assert not np.array_equal(peak(there, images, 5), unpruned)
    assert np.array_equal(peak(plain, images, 5), unpruned)
    with pytest.raises(cc.UsageError, match="no category"):
        _ = circuit.bias


def test_every_verb_has_an_answer(swept, tmp_path):
    folder, document = swept
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    rows = json.loads(call("evaluate", copy, "--format", "json").stdout)
    assert [r["heldout"] for r in rows] == [t["circuit"]["heldout"] for t in document["targets"]]
    controls = json.loads(call("controls", copy, "--format", "json").stdout)
    kinds = {r["control"]: r for r in controls if r["target"] == "features.3:4"}
    assert set(kinds) == {"circuit", "random", "weight-magnitude", "complement", "empty",
                          "other-target"}  # fmt: skip
    assert kinds["circuit"]["heldout"] == rows[0]["heldout"]
    assert kinds["empty"]["heldout"] is None and kinds["empty"]["kept_weights"] == 0
    report = Path(call("report", copy).stdout.strip()).read_text()
    assert "Circuits of features.3" in report and "other target" in report
    assert "<h2>Sharing by depth</h2>" in report and "<h2>How sure circuits are</h2>" not in report
    mean = next(r for r in cc.open_run(copy).area() if not r["category"])
    shown = f"{mean['cpr_covered']:.3f}</td>"
    assert shown in report.partition("<h2>Area under the curves</h2>")[2].partition("<h2>")[0]
    means = {r["control"]: r for r in cc.open_run(copy).control_means()}
    both = [r["heldout"] for r in controls if r["control"] == "circuit"]
    assert means["circuit"]["mean"] == pytest.approx(np.mean(both))
    assert cc.open_run(copy).choices().columns == ()
    assert "features.3:4" in call("overlap", copy).stdout
    table = call("sweep", *TARGET, *FEW, "--out", copy).stdout
    assert "correlation" in table and "2 targets: " in table and "random" in table
    text = call("sweep", *TARGET, *FEW, "--out", copy, "--format", "csv").stdout
    read = list(csv.DictReader(io.StringIO(text)))
    by_stage = document["targets"][0]["circuit"]["pruned_by_stage"]
    assert float(read[0]["pruned_conv"]) == by_stage["conv"]
    assert call("verify", copy).stdout == "intact: 2 circuits\n"
    assert "features.3:5" in call("ls", "categories", *TARGET).stdout
    assert "features.3" in call("score", *TARGET).stdout
    assert "conv" in call("stability", *TARGET).stdout
    run = cc.open_run(copy)
    assert list(run) == ["features.3:4", "features.3:5"] and "2 targets" in repr(run)
    assert "correlation" in repr(run["features.3:4"]) and "random_heldout" in run._repr_html_()
    assert len(run.curves()) == 8 and run.table()[0]["target"] == "features.3:4"
    assert "correlation" in run.plot_curves("features.3:4").get_ylabel()
    with pytest.raises(cc.UsageError, match="no accuracy"):
        run.plot_accuracy()


def test_another_threshold_is_that_of_a_new_sweep(tmp_path):
    """Of a Linear unit, whose second stage is run again behind another first one."""
    few = [
        "--target",
        "classifier.1:3",
        "--levels",
        "0,0.05,0.2,0.5",
        *COUNTS,
        "--random-masks",
        "0",
    ]
    for name, threshold in (("a", "0.6"), ("b", "0.8")):
        call("sweep", *few, "--threshold", threshold, "--out", tmp_path / name)
    call("extract", tmp_path / "a", "--threshold", "0.8", "--out", tmp_path / "c")
    again, fresh, before = (masks(tmp_path / name) for name in "cba")
    assert all(np.array_equal(again[k], fresh[k]) for k in fresh) and again.keys() == fresh.keys()
    assert any(not np.array_equal(before[k], fresh[k]) for k in fresh)
    planned = call("plan", *few, "--threshold", "0.8", "--exact", "--no-probe", "--format", "json")
    (exact,) = json.loads(planned.stdout)["exact"]
    (target,) = cc.open_run(tmp_path / "b").document.targets
    assert exact["multiply_adds"] == sum(s.planned_multiply_adds for s in target.stages)


def test_plans_of_targets_and_of_devices_do_not_get_in_each_others_way():
    said = call("plan", *TARGET, *FEW, "--no-probe").stdout
    assert "images to score on (shared)" in said and "2 categories" in said
    found = cc.plan(target=["features.3:4", "h100"], probe=False, levels="0,0.5")
    assert found.target.name == "h100" and found.categories == 1
    call("plan", "--target", "h100", "--target", "a100", code=2)


def plain_folder(root, count):
    """So many of the example's images in a folder, and in one inside it, without labels."""
    (root / "more").mkdir(parents=True)
    files = sorted(Path(IMAGES).rglob("val/*/*.png"))[:: 500 // count][:count]
    for place, file in enumerate(files):
        shutil.copy(file, root / ("more" if place % 3 else "") / f"{place}.png")
    return root


def test_a_plain_folder_of_images_will_do(tmp_path):
    root = plain_folder(tmp_path / "images", 50)
    options = {"extraction_images": 20, "heldout_images": 15, "levels": "0,0.3", "random_masks": 0}
    options["target"] = "features.0:3"
    runs = [
        cc.sweep("bundled", root, out=tmp_path / f"{seed}", seed=seed, **options) for seed in (0, 1)
    ]
    found = []
    for run in runs:
        rows = run.images()
        assert len({row["path"] for row in rows}) == len(rows) == 50
        found.append({row["path"] for row in rows if row["split"] == "extraction"})
        assert len(found[-1]) == 20
        assert sum(row["split"] == "scoring" for row in rows) == 15 < POOL
    assert found[0] != found[1]
    flags = ["--target", "features.0:3", "--images", root, "--extraction-images", "20"]
    said = call("sweep", *flags, "--heldout-images", "28", "--out", tmp_path / "x", code=3).stderr
    assert "2 images, 4 for scoring are needed" in said
    said = call("sweep", "--target", "features.0:3", "--images", tmp_path / "none", code=3).stderr
    assert "no such folder" in said
    other = json.loads(
        call("evaluate", runs[0].folder, "--images", IMAGES, "--format", "json").stdout
    )
    assert other[0]["images"] == 15 and other[0]["heldout"] != runs[0].table()[0]["heldout"]
    (root / "broken.png").write_bytes(b"no image")
    run = cc.sweep("bundled", root, out=tmp_path / "b", max_bad=1, **options)
    assert "broken.png" not in run.images().column("path")


def test_a_unit_that_never_varies_is_not_available(tmp_path):
    module, categories, own = load_bundled()
    with torch.no_grad():
        module.features[0].bias[2] = -100
    from headed import bundled_transform

    model = cc.Model.of(module, bundled_transform(own), categories)
    options = {"extraction_images": 20, "heldout_images": 15, "levels": "0,0.3"}
    run = cc.sweep(model, IMAGES, target="features.1:2-3", out=tmp_path / "run", **options)
    dead, alive = run.document.targets
    assert dead.circuit is None and dead.undefined == "the unpruned values are all equal"
    assert alive.circuit is not None
    assert run.document.summary.undefined == {dead.undefined: 1}
    assert "all equal" in (run.folder / "report.html").read_text()
    assert run.table()[0]["pruned"] is None
    said = call("export", run.folder, "features.1:2", code=3).stderr
    assert "in hand" in said or "has no circuit" in said


def test_directions_share_their_last_layer(tmp_path):
    """A direction that is 1 at a channel has the channel's values; its rows are all relevant."""
    one, other = np.zeros((2, 32))
    one[4], other[:] = 1, np.random.default_rng(0).normal(size=32)
    np.save(tmp_path / "one.npy", one)
    save_file({"d": torch.from_numpy(other)}, tmp_path / "other.safetensors")
    flags = [f"--target=features.3:{tmp_path / name}" for name in ("one.npy", "other.safetensors")]
    out = ["--out", tmp_path / "run", "--format", "json"]
    document = json.loads(call("sweep", *flags, *FEW, *out).stdout)
    first, second = document["targets"]
    assert [first["category"], second["category"]] == ["features.3:one.npy",
                                                       "features.3:other.safetensors"]  # fmt: skip
    run = cc.open_run(tmp_path / "run")
    assert {tuple(run[t].masks["features.3"].shape) for t in run} == {(32, 16, 3, 3)}
    shared = [r for r in run.overlap() if r["layer"] == "features.3"]
    assert shared[0]["overlap"] > 0
    names = [row["path"] for row in run.images() if row["split"] == "extraction"]
    module, _, _ = load_bundled()
    assert first["spread"] == pytest.approx(peak(module, input_of(names), 4).std(), rel=1e-5)
    np.save(tmp_path / "short.npy", one[:5])
    said = call("sweep", f"--target=features.3:{tmp_path / 'short.npy'}", code=3).stderr
    assert "shape (5,), the layer has 32 channels" in said
    said = call("sweep", "--target=features.3:nowhere.npy", code=3).stderr
    assert "cannot be read" in said
    np.save(tmp_path / "zero.npy", 0 * one)
    assert (
        "not zero" in call("sweep", f"--target=features.3:{tmp_path / 'zero.npy'}", code=3).stderr
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["features.3:32"], "the layer has units 0 to 31"),
        (["feature.3:4"], "did you mean 'features.3'"),
        (["flatten:4"], "no unit of one layer"),
        (["classifier.1:3", "--pool-target", "mean"], "has no positions"),
        (["features.3:4", "--preset", "strict"], "preset strict: bias: not with --target"),
        (["features.3:4", "--screen", "on"], "every image has its say"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(flags, said):
    assert said in call("sweep", "--target", *flags, code=2).stderr


def test_its_report_and_pages_work_in_a_browser(swept, tmp_path, browser):
    folder = shutil.copytree(swept[0], tmp_path / "run")
    call("report", folder, "--pages")
    page = browser.open(folder / "report.html")
    page.find("details.one summary")[0].click()
    page.until("document.querySelector('details.one[open] .similar')")
    assert "features.3:5" in page.text("details.one[open] .similar")
    assert len(page.find("details.one[open] svg.plot")) == 1  # there is no other stage
    page.find("details.one[open] a")[0].click()
    page.until("document.querySelector('h1').textContent === 'features.3:4'")
    assert "correlation" in page.text("dl") and page.said() == []
