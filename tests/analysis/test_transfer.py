"""Circuits on other images: frozen and refitted biases against the plain method in float64."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call
from PIL import Image

import circuitcore as cc
from circuitcore.analysis import evaluation
from circuitcore.analysis.evaluation import prepared_run
from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.extraction.floor import random_mask
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import open_run

NAMES = ("Trouser", "Bag")
KINDS = ("circuit", "unpruned", "random", "empty")


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def dim(tmp_path_factory):
    """The bundled images at six tenths of their brightness, two pixels to the right."""
    root = tmp_path_factory.mktemp("transfer") / "dim"
    for file in Path(IMAGES).rglob("*.png"):
        pixels = np.array(Image.open(file).convert("L"))
        changed = np.roll((pixels * 0.6).astype(np.uint8), 2, axis=1)
        place = root / file.relative_to(IMAGES)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(changed).save(place)
    return root


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    return shutil.copytree(small.folder, tmp_path_factory.mktemp("transferred") / "run")


@pytest.fixture(scope="module")
def rows(folder, dim):
    told = Notes()
    found = cc.open_run(folder).evaluate(str(dim), progress=told).nested
    return {row["category"]: row for row in found}, told.notes


@pytest.fixture(scope="module")
def by_hand(folder, dim, example, method):
    """Activations of all four on each set of images, in float64, by category and set."""
    own = load_bundled()[2]
    splits = {
        "own": example.splits,
        "there": method.load_images(dim, example.categories, own.mean, own.std),
    }
    prepared = prepared_run(folder, Silent())[1]
    last = method.last_layer(example.double)
    bias = example.double.get_submodule(last).bias.detach()
    found = {}
    for name in NAMES:
        unit = example.categories.index(name)
        stored = read_circuit(open_run(folder).circuit_path(unit))
        masks = {"circuit": stored.kept, "random": random_mask(prepared, unit, stored.kept)}
        for place, parts in splits.items():
            for part in ("extraction", "heldout"):
                images, labels = parts[part]
                with torch.no_grad():
                    logits = method.run(example.double, images)
                values = {
                    kind: method.activations(example.double, images, unit, mask)
                    for kind, mask in masks.items()
                }
                values["unpruned"] = logits[:, unit]
                values["empty"] = bias[unit].expand(len(images))
                margin = method.other_maximum(logits, unit)
                found[name, place, part] = values, margin, labels == unit
    return found


def fitted(method, by_hand, name, place, kind):
    """The matched bias on the extraction set of a place, `method.best_bias` with ``most``."""
    values, margin, targets = by_hand[name, place, "extraction"]
    most = method.csa_at(values["unpruned"], margin, targets, 0.0, "other").false_alarms
    return method.best_bias(values[kind], margin, targets, "other", most).bias


def same(found, outcome):
    assert found["bias"] == pytest.approx(outcome.bias, abs=1e-4)
    assert round(found["hit"] * outcome.targets) == outcome.hits
    assert found["false_alarms"] == outcome.false_alarms
    assert found["csa"] == pytest.approx(outcome.csa)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biases", ["frozen", "refitted"])
def test_biases_are_those_of_the_plain_method(name, kind, biases, rows, by_hand, method):
    """Frozen: fitted on the run's own extraction set; refitted: on that of the other images."""
    bias = fitted(method, by_hand, name, "own" if biases == "frozen" else "there", kind)
    values, margin, targets = by_hand[name, "there", "heldout"]
    row = rows[0][name] if biases == "frozen" else rows[0][name]["refitted"]
    same(row[kind], method.csa_at(values[kind], margin, targets, bias, "other"))


def drawn_again(method, yes, targets):
    """CSA of each prediction on 20,000 resamples of images, drawn within targets and others."""
    generator = np.random.default_rng(11)
    own, rest = np.flatnonzero(targets), np.flatnonzero(~targets)
    a = own[generator.integers(0, len(own), (20_000, len(own)))]
    b = rest[generator.integers(0, len(rest), (20_000, len(rest)))]
    return [each[a].mean(1) - each[b].mean(1) for each in yes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("biases", ["frozen", "refitted"])
def test_differences_have_paired_intervals(name, biases, rows, by_hand, method):
    row = rows[0][name] if biases == "frozen" else rows[0][name]["refitted"]
    values, margin, targets = by_hand[name, "there", "heldout"]
    yes = [(row[k]["bias"] > margin - values[k]).double().numpy() for k in KINDS]
    circuit, unpruned, random, empty = drawn_again(method, yes, targets.numpy())
    for kind, other in (("random", random), ("empty", empty)):
        assert row[f"over_{kind}"] == pytest.approx(row["circuit"]["csa"] - row[kind]["csa"])
        expected = np.quantile(circuit - other, [0.025, 0.975])
        assert row[f"over_{kind}_ci95"] == pytest.approx(expected, abs=0.02)
    assert row["csa_ratio"] == pytest.approx(row["circuit"]["csa"] / row["unpruned"]["csa"])
    expected = np.quantile(circuit / unpruned, [0.025, 0.975])
    assert row["csa_ratio_ci95"] == pytest.approx(expected, abs=0.03)


def test_a_shift_of_activations_comes_back_with_a_refitted_bias(rows):
    """Dim images: frozen, the empty circuit says Trouser better than the circuit; refitted not."""
    row = rows[0]["Trouser"]
    assert row["over_empty"] < 0 < row["refitted"]["over_empty_ci95"][0]
    assert row["refitted"]["circuit"]["csa"] > row["circuit"]["csa"] + 0.2


def test_the_runs_own_images_have_controls_and_no_refitted_bias(small, by_hand, method):
    found = json.loads(call("evaluate", small.folder, "--format", "json").stdout)
    for row in found:
        name = row["category"]
        assert row["refitted"] is None
        for kind in KINDS:
            values, margin, targets = by_hand[name, "own", "heldout"]
            bias = fitted(method, by_hand, name, "own", kind)
            same(row[kind], method.csa_at(values[kind], margin, targets, bias, "other"))
        record = next(c for c in small.document["categories"] if c["category"] == name)
        assert row["empty"] == record["empty"]["heldout"]
        assert row["circuit"]["csa"] == record["circuit"]["heldout"]["csa"]


def test_the_runs_own_images_again_lose_nothing(folder, small):
    """As other images they are the same ones: refitted biases are the frozen ones."""
    found = cc.open_run(folder).evaluate(str(IMAGES)).nested
    for row in found:
        for kind in KINDS:
            assert row["refitted"][kind] == row[kind]


def test_the_cost_is_said_and_nothing_is_run_twice(folder, dim, rows, monkeypatch):
    costs = [note for note in rows[1] if "FPE" in note]
    # 200 extraction and 300 held-out images: one pass of 200 each, then two of 500
    expected = [Fraction(2 * 200, 200), Fraction(2 * 2 * 500, 200)]
    assert len(costs) == 2
    for note, fpe in zip(costs, expected, strict=True):
        assert f"at most {float(fpe):.1f} FPE" in note
    asked = []
    own = evaluation.activations

    def counted(*given):
        asked.append(given[2])
        return own(*given)

    monkeypatch.setattr(evaluation, "activations", counted)
    told = Notes()
    again = cc.open_run(folder).evaluate(str(dim), progress=told).nested
    assert not asked and not [note for note in told.notes if "FPE" in note]
    assert [dict(row) for row in again] == [rows[0][name] for name in NAMES]
    (kept,) = [
        f for f in (folder / "transfer").glob("*.json")
        if f.name != "random.json" and json.loads(f.read_text())["images"] == str(dim)
    ]  # fmt: skip
    document = json.loads(kept.read_text())
    del document["sha256"]
    document["circuits"].popitem()  # as if it had been stopped after the first
    kept.write_text(json.dumps(document))
    assert cc.open_run(folder).evaluate(str(dim)).nested == again and len(asked) == 4


def test_without_the_runs_own_images_random_masks_have_refitted_biases_alone(
    small, dim, rows, tmp_path
):
    folder = shutil.copytree(small.folder, tmp_path / "run")
    shutil.rmtree(folder / "transfer", ignore_errors=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["options"]["images"] = str(tmp_path / "gone")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = Notes()
    found = cc.open_run(folder).evaluate(str(dim), progress=told)
    assert any("no frozen bias without the run's own images" in note for note in told.notes)
    for row in found.nested:
        wanted = rows[0][row["category"]]
        assert row["random"] is None and row["over_random_ci95"] is None
        assert row["circuit"] == wanted["circuit"] and row["refitted"] == wanted["refitted"]


def test_as_a_command(folder, dim, rows):
    text = call("evaluate", folder, "--images", dim).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("frozen") == text.count("refitted") == 2
    lines = call("evaluate", folder, "--images", dim, "--format", "csv").stdout.splitlines()
    assert lines[0].startswith("category,images,circuit_hit") and len(lines) == 3
    assert "refitted_over_empty_high" in lines[0]
