"""Two runs beside each other: against numpy on the masks themselves, and a run against itself."""

import csv
import io
import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from command import call
from headed import bundled_transform, trained

import circuitcore as cc
from circuitcore.analysis.area import Curve
from circuitcore.analysis.comparison import OTHER_WEIGHTS
from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.machine.files import read_sealed, sealed
from circuitcore.report.side_by_side import band
from circuitcore.runs.circuitfile import read_circuit, write_circuit
from circuitcore.runs.folder import open_run

SMALL = {"fc_levels": "0,0.5,0.9,0.99", "conv_levels": "0,0.5,0.9"}


@pytest.fixture(scope="module")
def looser(small, tmp_path_factory):
    """The run `small` chosen anew at a lower threshold."""
    out = tmp_path_factory.mktemp("looser") / "run"
    return cc.open_run(small.folder).extract(threshold=0.3, out=out)


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """Trouser and Dress by random scores."""
    out = tmp_path_factory.mktemp("random") / "run"
    options = {**SMALL, "criterion": "random", "device": "cpu"}
    return cc.sweep(categories=["Trouser", "Dress"], out=out, **options)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """The bundled network with its hidden units in another order: the same function."""
    module, categories, own = load_bundled()
    first, second = module.classifier[1], module.classifier[4]
    order = torch.randperm(len(first.weight), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    model = cc.Model.of(module, bundled_transform(own), categories)
    out = tmp_path_factory.mktemp("shuffled") / "run"
    return cc.sweep(model, IMAGES, categories=["Trouser"], out=out, **SMALL)


def rewritten(folder, out, change):
    """A copy of a run whose masks of classifier.4 went through ``change``."""
    shutil.copytree(folder, out)
    for path in open_run(out).units().values():
        stored = read_circuit(path)
        kept = {**stored.kept, "classifier.4": change(stored.kept["classifier.4"])}
        write_circuit(path, stored.key, stored.record, kept)
    return cc.open_run(out)


@pytest.fixture(scope="module")
def inverted(small, tmp_path_factory):
    """`small` with one layer's masks turned over: denser there, as dense elsewhere."""
    return rewritten(small.folder, tmp_path_factory.mktemp("inverted") / "run", lambda m: ~m)


def test_an_option_that_a_manifest_leaves_out_is_at_its_default(small, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "run")
    manifest = read_sealed(folder / "manifest.json")
    manifest["options"]["ablate"] = "mean"
    (folder / "manifest.json").write_bytes(sealed(manifest))
    found = cc.compare(small.folder, folder)
    assert {each.name: (each.a, each.b) for each in found.differing} == {"ablate": ("zero", "mean")}


def test_a_run_beside_itself(small):
    found = cc.compare(small.folder, small.folder)
    assert found.differing == found.only_a == found.only_b == []
    assert found.overlap == "same network" and found.ceiling_a is None
    for pair in found.categories:
        assert pair.same and pair.overlap == 1 and 0 < pair.chance < 1
        assert (pair.pruned_a, pair.hit_a) == (pair.pruned_b, pair.hit_b)
    assert all(row.overlap == row.most == 1 for row in found.layers)
    assert {each.quantity for each in found.differences} == {
        "pruned", "hit", "csa_ratio", "cpr", "cmd",
    }  # fmt: skip
    for each in found.differences:
        assert each.difference == 0 and each.difference_ci95 == (0, 0)
        assert (each.categories, each.left_out) == (2, 0)
    said = call("compare", small.folder, small.folder).stdout
    assert "the same circuit in both: 2: Trouser, Bag" in said and "same options" in said


def overlap_by_hand(one, other):
    """Overlap, chance and bound over bool masks by layer, each layer's densities its own."""
    both = sum(int((one[n] & other[n]).sum()) for n in one)
    either = sum(int((one[n] | other[n]).sum()) for n in one)
    p, q = ([float(m[n].double().mean()) for n in one] for m in (one, other))
    size = [one[n].numel() for n in one]
    inside = sum(n * a * b for n, a, b in zip(size, p, q, strict=True))
    outside = sum(n * (a + b - a * b) for n, a, b in zip(size, p, q, strict=True))
    sizes = np.array([[int(m[n].sum()) for n in one] for m in (one, other)])
    return both / either, inside / outside, sizes.min(0).sum() / sizes.max(0).sum()


@pytest.mark.parametrize("which", ["looser", "random", "inverted"])
def test_overlap_is_that_of_the_masks(which, small, request):
    other = request.getfixturevalue(which)
    here, found = cc.open_run(small.folder), cc.compare(small.folder, other)
    for pair in found.categories:
        one, two = (run[pair.category].masks for run in (here, other))
        rows = {row.layer: row for row in found.layers if row.category == pair.category}
        assert set(rows) == {"", *one}
        for layer, row in rows.items():
            part = {layer: one[layer]} if layer else one
            wanted = overlap_by_hand(part, {name: two[name] for name in part})
            assert (row.overlap, row.chance, row.most) == pytest.approx(wanted, abs=1e-9)
        assert pair.overlap == rows[""].overlap and pair.same == (pair.overlap == 1)
    if which == "inverted":
        assert all(row.overlap == 0 for row in found.layers if row.layer == "classifier.4")
    if which == "random":
        whole = [row for row in found.layers if row.layer == "classifier.1"]
        assert all(abs(row.overlap - row.chance) < 0.05 for row in whole)


def test_another_threshold(small, looser):
    """The first stage's levels nest, and what differs is named."""
    found = cc.compare(small.folder, looser)
    names = {each.name: (each.a, each.b) for each in found.differing}
    assert names == {"threshold": (0.9, 0.3)}
    for row in (row for row in found.layers if row.layer.startswith("classifier")):
        assert row.both == min(row.kept_a, row.kept_b)
    pruned = next(each for each in found.differences if each.quantity == "pruned")
    values = [(pair.pruned_a, pair.pruned_b) for pair in found.categories]
    assert pruned.difference > 0
    assert pruned.difference == pytest.approx(np.mean([b - a for a, b in values]))
    low, high = pruned.difference_ci95
    assert low == pytest.approx(min(b - a for a, b in values))
    assert high == pytest.approx(max(b - a for a, b in values))
    area = {(e.quantity, e.stage): e for e in found.differences if e.stage}
    assert area["cpr", "fc"].difference == 0  # the first stage's curve knows no threshold


def test_areas_are_those_of_both_runs(small, random):
    found = cc.compare(small.folder, random)
    assert (found.only_a, found.only_b) == (["Bag"], ["Dress"])
    assert {each.name for each in found.differing} == {"criterion"}
    for run, side in ((cc.open_run(small.folder), "a"), (random, "b")):
        rows = {(r["category"], r["stage"]): r for r in run.area()}
        for each in (e for e in found.differences if e.stage):
            wanted = rows["Trouser", each.stage][f"{each.quantity}_covered"]
            assert getattr(each, side) == pytest.approx(wanted)
            assert each.difference_ci95 is None and each.categories == 1


def test_the_same_network_in_another_order(small, shuffled):
    """What places cannot show: the function is the same, overlap is at chance in those layers."""
    found = cc.compare(small.folder, shuffled)
    assert found.overlap == OTHER_WEIGHTS
    assert "weights_sha256" in {each.name for each in found.differing}
    (pair,) = found.categories
    assert pair.pruned_a == pytest.approx(pair.pruned_b, abs=1e-6) and pair.hit_a == pair.hit_b
    rows = {row.layer: row for row in found.layers}
    assert rows["features.3"].overlap > 0.99
    for layer in ("classifier.1", "classifier.4"):
        assert rows[layer].overlap < 0.5 < rows[layer].most


def test_other_networks_have_no_overlap(small, tmp_path):
    _, model = trained()
    other = cc.sweep(model, IMAGES, categories=["Trouser", "Bag"], levels="0,0.5,0.9",
                     stages="conv=*", out=tmp_path / "run")  # fmt: skip
    found = cc.compare(small.folder, other)
    assert found.layers == [] and found.overlap.startswith("none: the networks have no layer")
    assert all(pair.same is pair.overlap is None for pair in found.categories)
    assert any(each.quantity == "pruned" and each.categories for each in found.differences)
    said = call("compare", small.folder, other.folder).stdout
    assert (
        "overlap: none" in said
        and "other levels" in said
        and max(map(len, said.splitlines())) <= 80
    )


def test_networks_that_agree_in_some_layers(small, tmp_path):
    other = rewritten(small.folder, tmp_path / "run", lambda m: m[:100].clone())
    found = cc.compare(small.folder, other)
    layers = {row.layer for row in found.layers}
    assert "" not in layers and "classifier.4" not in layers and len(layers) == 7
    assert all(row.overlap == 1 for row in found.layers)
    assert found.overlap.startswith("of single layers only")
    assert all(pair.same is pair.overlap is None for pair in found.categories)


def test_the_most_is_a_bound_layer_by_layer(small, inverted, tmp_path):
    """One denser in a layer, the other in the next: whole sizes alone would allow more."""
    thinned = shutil.copytree(inverted.folder, tmp_path / "run")
    for path in open_run(thinned).units().values():
        stored = read_circuit(path)
        kept = {**stored.kept, "classifier.1": torch.zeros_like(stored.kept["classifier.1"])}
        write_circuit(path, stored.key, stored.record, kept)
    found = cc.compare(small.folder, thinned)
    for row in found.layers:
        one, two = (
            run[row.category].masks for run in (cc.open_run(small.folder), cc.open_run(thinned))
        )
        part = {row.layer: one[row.layer]} if row.layer else one
        assert row.most == pytest.approx(overlap_by_hand(part, {n: two[n] for n in part})[2])
        assert row.overlap <= row.most


def test_the_ceiling_stands_beside(small, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "run")
    rows = {}
    for unit, path in open_run(folder).units().items():
        rows[path.stem] = [{"layer": "", "ceiling": 0.1 * unit}, {"layer": "features.0",
                           "ceiling": None}]  # fmt: skip
    (folder / "resamples.json").write_text(json.dumps({"settings": {}, "circuits": rows}))
    found = cc.compare(small.folder, folder)
    units = list(open_run(folder).units())
    assert found.ceiling_a is None and found.ceiling_b == pytest.approx(0.1 * np.mean(units))
    whole = [row.ceiling_b for row in found.layers if row.layer == ""]
    assert whole == pytest.approx([0.1 * unit for unit in units])
    assert all(row.ceiling_b is None for row in found.layers if row.layer)
    (folder / "resamples.json").write_text("{")
    assert cc.compare(small.folder, folder).ceiling_b is None


def test_the_command_and_its_figure(small, random, tmp_path):
    plot = tmp_path / "curves.svg"
    said = call("compare", small.folder, random.folder, "--plot", plot).stdout
    assert "criterion" in said and "in A alone: 1: Bag" in said
    assert max(map(len, said.splitlines())) <= max(80, len(str(small.folder)) + 2)
    root = ET.fromstring(plot.read_text())
    text = " ".join("".join(each.itertext()) for each in root.iter() if each.tag.endswith("text"))
    assert "fc stage, 1 categories" in text and "var(--" not in plot.read_text()
    form = json.loads(call("compare", small.folder, random.folder, "--format", "json").stdout)
    assert form["only_b"] == ["Dress"] and form["categories"][0]["category"] == "Trouser"
    rows = csv.DictReader(
        io.StringIO(call("compare", small.folder, random.folder, "--format", "csv").stdout)
    )
    assert [row["category"] for row in rows] == ["Trouser"]
    call("compare", small.folder, random.folder, "--plot", tmp_path / "x.png", code=2)
    call("compare", small.folder, tmp_path / "none", code=3)


def test_a_band_is_the_mean_of_straight_lines():
    kept = np.array([1, 0.1, 0.01])
    made = [Curve(kept, phi, phi, phi) for phi in (np.array([1, 0.5, 0]), np.array([1, 1, 1.0]))]
    at, mean, low, high = band(made)
    assert mean == pytest.approx((1 + 1 + np.log(at) / np.log(100)) / 2)
    assert low == pytest.approx(1 + np.log(at) / np.log(100)) and high == pytest.approx(1)
