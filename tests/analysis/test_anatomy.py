"""What of a circuit is alive, what passes through its units, what drives them, and its drawing."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from command import call
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import circuitcore as cc
from circuitcore.analysis.across.usage import Usage, used
from circuitcore.analysis.anatomy.anatomy import FOLDER, kept
from circuitcore.analysis.anatomy.exemplars import MOST, exemplars
from circuitcore.analysis.anatomy.flow import flow
from circuitcore.analysis.anatomy.live import live_circuit
from circuitcore.analysis.evaluation import inputs_of
from circuitcore.analysis.score_files import scores_of
from circuitcore.engine.passes import circuit_override
from circuitcore.network.forward import forward
from circuitcore.network.trace import trace
from circuitcore.progress import Silent
from circuitcore.report.drawing.layout import COLUMNS
from circuitcore.report.drawing.small import drawn, small_svg
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import open_run
from circuitcore.runs.images.exemplarfile import EXEMPLARS, read_exemplars

UNIT = 1


class Branched(nn.Module):
    """A shortcut, a grouped and a depthwise convolution, maps laid side by side, two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.c = nn.Conv2d(4, 4, 1, groups=4)
        self.d = nn.Conv2d(4, 3, 1)
        self.e = nn.Linear(7 * 4, 5)
        self.f = nn.Linear(5, 3)

    def forward(self, x):
        first = torch.relu(self.a(x))
        second = torch.relu(self.b(first) + first)
        side = torch.cat([torch.relu(self.c(second)), self.d(first)], 1)
        pooled = nn.functional.adaptive_avg_pool2d(side, 2)
        return self.f(torch.relu(self.e(pooled.flatten(1))))


# by hand: of every layer, which value each of its input channels is, as (layer, unit) or the image
def readers():
    image = [[("image", c)] for c in range(2)]
    first = [[("a", c)] for c in range(4)]
    second = [[("b", c), ("a", c)] for c in range(4)]
    side = [[("c", c)] for c in range(4)] + [[("d", c)] for c in range(3)]
    return {
        "a": image, "b": first, "c": second, "d": first,
        "e": [side[n // 4] for n in range(28)], "f": [[("e", c)] for c in range(5)],
    }  # fmt: skip


GROUPS = {"b": 2, "c": 4}


def pairs_of(layer, mask):
    """(unit, input channel, place in the mask) of every weight that is kept, taps apart."""
    groups = GROUPS.get(layer, 1)
    rows, columns = mask.shape[:2]
    for place in mask.nonzero().tolist():
        row, column = place[:2]
        yield row, (row // (rows // groups)) * columns + column, tuple(place)


def alive_by_hand(masks):
    """Kept weights on a path from the image to the target, by search through single units."""
    reads = readers()
    edges = {}  # (layer, unit) -> what it reads
    for layer, mask in masks.items():
        for row, channel, _ in pairs_of(layer, mask):
            edges.setdefault((layer, row), []).extend(reads[layer][channel])
    varies = {("image", 0), ("image", 1)}
    while True:
        more = {unit for unit, sources in edges.items() if varies & set(sources)} - varies
        if not more:
            break
        varies |= more
    needed, front = {("f", 0)} & varies, [("f", 0)]
    while front:
        for source in edges.get(front.pop(), []):
            if source in varies and source not in needed:
                needed.add(source)
                front.append(source)
    found = {layer: torch.zeros_like(mask) for layer, mask in masks.items()}
    for layer, mask in masks.items():
        for row, channel, place in pairs_of(layer, mask):
            if (layer, row) in needed and varies & set(reads[layer][channel]):
                found[layer][place] = True
    return found


@pytest.fixture(scope="module")
def branched():
    torch.manual_seed(0)
    return trace(Branched().eval().double())


def some_masks(network, density, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(network.relevant_shape(name), generator=random) < density
        for name in network.layers()
    }


@settings(max_examples=60, deadline=None)
@given(density=st.sampled_from([0.0, 0.03, 0.1, 0.2, 0.4, 1.0]), seed=st.integers(0, 10**6))
def test_live_weights_are_those_on_a_path(branched, density, seed):
    masks = some_masks(branched, density, seed)
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    found = live_circuit(branched, UNIT, masks, image)
    wanted = alive_by_hand(masks)
    for layer, live in found.live.items():
        assert torch.equal(live, wanted[layer]), layer
    if density == 1.0:
        assert all(bool(live.all()) for live in found.live.values())


@settings(max_examples=25, deadline=None)
@given(density=st.sampled_from([0.05, 0.15, 0.3]), seed=st.integers(0, 10**6))
def test_dead_weights_have_no_say_or_are_a_bias(branched, density, seed):
    """Of units that lead nowhere: without them the activation is the very same.  Of units that
    nothing alive leads to: what they give is the same for every image.
    """
    masks = some_masks(branched, density, seed)
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    live = live_circuit(branched, UNIT, masks, images[:1]).live

    def run(kept, names=("f",)):
        network, override = circuit_override(branched, UNIT, kept)
        return forward(network, {"input": images}, list(names), override=override)

    reads, leads = readers(), {("f", 0)}
    for layer in reversed(list(masks)):
        for row, channel, _ in pairs_of(layer, masks[layer]):
            if (layer, row) in leads:
                leads |= set(reads[layer][channel])
    without = {layer: mask.clone() for layer, mask in masks.items()}
    for layer, mask in without.items():
        for row in range(len(mask)):
            if (layer, row) not in leads:
                assert not bool(live[layer][row].any())
                mask[row] = False
    assert torch.equal(run(without)[0], run(masks)[0])
    for layer, value in zip(masks, run(masks, tuple(masks)), strict=True):
        for row in range(len(masks[layer])):
            if (layer, row) in leads and not bool(live[layer][row].any()):
                own = value[:, row].reshape(len(images), -1)
                torch.testing.assert_close(own, own[:1].expand_as(own), rtol=1e-12, atol=1e-12)


def test_a_kept_weight_of_0_carries_nothing_and_nan_in_a_pruned_one_is_not_read(branched):
    masks = some_masks(branched, 1.0, 0)
    masks["e"][2] = False
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    network = branched.to("cpu", torch.float64)
    weights = {name: weight.clone() for name, weight in network.weights.items()}
    weights["e"][2] = torch.nan
    weights["f"][UNIT, 3] = 0
    from dataclasses import replace

    spoiled = replace(network, weights=weights)
    found = live_circuit(spoiled, UNIT, masks, image)
    assert not found.live["f"][0, 3] and not found.live["f"][0, 2] and found.live["f"][0, 1]
    assert not bool(found.live["e"][3].any()) and not bool(found.live["e"][2].any())


@settings(max_examples=25, deadline=None)
@given(density=st.sampled_from([0.1, 0.4, 1.0]), seed=st.integers(0, 10**6))
def test_flow_is_the_scores_of_live_weights_added_up(branched, density, seed):
    masks = some_masks(branched, density, seed)
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    circuit = live_circuit(branched, UNIT, masks, image)
    random = torch.Generator().manual_seed(seed)
    scores = {n: torch.randn(m.shape, generator=random) for n, m in masks.items()}
    found = flow(circuit, scores)
    reads = readers()
    wanted = {}
    for layer, live in circuit.live.items():
        for row, channel, place in pairs_of(layer, live):
            for source, unit in reads[layer][channel]:
                if source != "image":
                    key = (layer, row, source, unit)
                    wanted[key] = wanted.get(key, 0) + abs(float(scores[layer][place]))
    for layer, sources in found.between.items():
        for source, between in sources.items():
            for row, unit in between.nonzero().tolist():
                if source in masks:
                    assert float(between[row, unit]) == pytest.approx(
                        wanted.pop((layer, row, source, unit))
                    )
    assert not wanted
    into_target = scores["f"].abs()[circuit.live["f"]].sum()
    assert float(found.through["f"].sum()) == pytest.approx(float(into_target), abs=1e-6)
    for layer in ("a", "e"):
        total = sum(float(s[layer].sum()) for s in found.between.values() if layer in s)
        assert float(found.through[layer].sum()) == pytest.approx(total)


def test_coarse_scores_count_for_each_of_their_weights(branched):
    masks = some_masks(branched, 1.0, 0)
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    circuit = live_circuit(branched, UNIT, masks, image)
    whole = {n: torch.ones(m.shape) for n, m in masks.items()}
    coarse = whole | {"a": torch.ones(4), "d": torch.ones(3, 4)}
    for layer, through in flow(circuit, whole).through.items():
        assert torch.equal(through, flow(circuit, coarse).through[layer])


@settings(max_examples=60, deadline=None)
@given(units=st.integers(1, 9), each=st.integers(1, 40), seed=st.integers(0, 1000))
def test_units_in_use_are_those_of_the_mask(units, each, seed):
    mask = np.random.default_rng(seed).random((units, each)) < 0.1
    assert np.array_equal(used(np.packbits(mask), units, each), mask.any(1))


@pytest.fixture(scope="module")
def shown(own_small):
    """(run folder, what `show --format json` says) of both categories."""
    said = call("show", own_small.folder, "--format", "json")
    return own_small.folder, json.loads(said.stdout)


def test_what_drives_units_is_what_the_network_says(own_small):
    run, inputs, _ = inputs_of(own_small.folder)
    network = inputs.model.network
    found = exemplars(network, inputs, torch.device("cpu"), Silent())
    files = inputs.split("extraction")
    from circuitcore.inputs.decoding import decode_all
    from circuitcore.inputs.pixels import to_input

    pixels = decode_all(inputs.source, files, inputs.model.preprocessing)
    images = to_input(pixels, inputs.model.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        values = forward(network, {"input": images}, network.layers())
    ids = torch.tensor([file.id for file in files])
    for name, value in zip(network.layers(), values, strict=True):
        peak = value.flatten(2).amax(2) if value.dim() > 2 else value
        top = peak.T.sort(dim=1, descending=True, stable=True)
        torch.testing.assert_close(found.values[name], top.values[:, :MOST], rtol=1e-4, atol=1e-4)
        clear = (top.values[:, :MOST] - top.values[:, 1 : MOST + 1]).min(1).values > 1e-3
        assert torch.equal(found.images[name][clear], ids[top.indices[clear][:, :MOST]])


def test_the_numbers_are_those_of_the_masks(shown):
    folder, said = shown
    run, inputs, options = inputs_of(folder)
    for each in said:
        unit = each["index"]
        masks = read_circuit(run.path(unit)).kept
        images = inputs.scoring_images(unit, torch.device("cpu"))
        circuit = live_circuit(inputs.model.network, unit, masks, images[:1])
        through = flow(circuit, scores_of(inputs.model.network, images, unit, options)).through
        assert each["nominal"] == sum(int(m.sum()) for m in masks.values())
        assert each["live"] == sum(layer["live"] for layer in each["layers"]) < each["nominal"]
        (other,) = (read_circuit(run.path(o["index"])).kept for o in said if o["index"] != unit)
        for layer in each["layers"]:
            name = layer["layer"]
            assert layer["live"] == int(circuit.live[name].sum())
            assert layer["nominal"] == int(masks[name].sum())
            for place in layer["shown"]:
                own = through[name]
                assert place["flow"] == pytest.approx(float(own[place["unit"]] / own.sum()))
                if name != inputs.model.network.last:
                    assert place["shared"] == int(other[name][place["unit"]].any())
        assert each["others"] == 1
        units = {(layer["layer"], u["unit"]) for layer in each["layers"] for u in layer["shown"]}
        for ribbon in each["ribbons"]:
            assert (ribbon["source"], ribbon["source_unit"]) in units
            assert (ribbon["layer"], ribbon["unit"]) in units and 0 < ribbon["flow"] <= 1


def test_pictures_are_what_their_endings_say(shown, tmp_path):
    folder, said = shown
    for each in said:
        text = ElementTree.parse(each["file"])
        words = {t.text for t in text.iter("{http://www.w3.org/2000/svg}text")}
        assert {each["category"], "features.0", "classifier.6"} <= words
    before = [Path(each["file"]).read_bytes() for each in said]
    call("show", folder)
    assert [Path(each["file"]).read_bytes() for each in said] == before, "the same bytes"
    call("show", folder, "Bag", "--out", tmp_path / "bag.png", "--top", "3")
    pixels = matplotlib.image.imread(tmp_path / "bag.png")
    assert pixels.shape[1] > 1000 and len(np.unique(pixels)) > 50
    call("show", folder, "Bag", "--out", tmp_path / "deep" / "bag.pdf", "--image", "3")
    assert (tmp_path / "deep" / "bag.pdf").read_bytes().startswith(b"%PDF-")


def test_any_image_can_be_shown_to_it(shown, tmp_path):
    from circuitcore.bundled import IMAGES

    folder, _ = shown
    image = next((IMAGES / "val" / "Sandal").iterdir())
    call("show", folder, "Bag", "--image", image, "--out", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert image.name in text and "a miss" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "two.svg"], 2, "one file, for one category; 2 are asked for"),
        (["Bag", "--out", "bag.jpg"], 2, "svg, png, pdf"),
        (["Bag", "--image", "99"], 2, "there are 20, from 0"),
        (["Bag", "--image", "nowhere.png"], 3, "no such file"),
        (["Sandal"], 3, "not done"),
        (["Bga"], 2, "Bag"),
    ],
)
def test_what_is_refused(shown, arguments, code, said):
    assert said in call("show", shown[0], *arguments, code=code).stderr


def test_what_is_kept_is_known_again_and_never_trusted_once_damaged(shown, tmp_path):
    folder = shutil.copytree(shown[0], tmp_path / "run")
    call("verify", folder, "--sample", "0")
    run, unit = open_run(folder), shown[1][0]["index"]
    found = kept(run, unit)
    assert found.model_dump(mode="json") == {k: v for k, v in shown[1][0].items() if k != "file"}
    svg = small_svg(run, unit)
    assert len(svg) < 12_000 and svg == drawn(found)
    ElementTree.fromstring(svg.replace(" class=own", ""))
    file = folder / FOLDER / f"{run.path(unit).stem}.json"
    for path in (file, folder / EXEMPLARS):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        assert path.name in call("verify", folder, "--sample", "0", code=3).stdout
    assert kept(run, unit) is None and small_svg(run, unit) is None
    assert read_exemplars(run) is None
    call("show", folder)
    assert kept(run, unit) == found and read_exemplars(run) is not None
    call("verify", folder, "--sample", "0")


def test_from_python_it_is_axes(shown):
    run = cc.open_run(shown[0])
    axes = run["Bag"].plot(top=2, image=0)
    texts = {text.get_text() for text in axes.texts}
    assert "Bag" in texts and "features.0" in texts
    (one,) = run.show(categories="Bag")
    assert one.found == kept(open_run(shown[0]), one.found.index)


def test_other_targets_are_drawn_too(tmp_path):
    few = ["--levels", "0,0.3", "--extraction-images", "12", "--heldout-images", "12"]
    folder = tmp_path / "run"
    call("sweep", "--target", "features.3:4", *few, "--out", folder)
    (said,) = json.loads(call("show", folder, "--format", "json").stdout)
    assert [layer["layer"] for layer in said["layers"]] == ["features.0", "features.3"]
    assert said["others"] == 0 and said["live"] > 0


def test_many_layers_stand_in_rows_and_nothing_overlaps():
    from torchvision.models import resnet18

    from circuitcore.analysis.anatomy.anatomy import Anatomy as Found
    from circuitcore.analysis.anatomy.anatomy import _layer, _ribbons, _shown
    from circuitcore.report.drawing.large import SIZES
    from circuitcore.report.drawing.layout import layout

    torch.manual_seed(0)
    network = trace(resnet18(num_classes=5).eval())
    masks = some_masks(network, 0.02, 0)
    circuit = live_circuit(network, UNIT, masks, torch.randn(1, 3, 40, 40))
    through = flow(circuit, {name: torch.rand(mask.shape) for name, mask in masks.items()})
    shown = _shown(circuit, through, 5)
    layers = [_layer(network, circuit, through, n, shown[n], None) for n in masks]
    found = Found(category="x", index=UNIT, others=0, nominal=1, live=1, layers=layers,
                  ribbons=_ribbons(through, shown))  # fmt: skip
    at = layout(found, SIZES)
    assert len(at.rows) == -(-len(masks) // COLUMNS) > 1
    boxes = [(n.x, n.y, n.half) for n in at.nodes.values()]
    for number, (x, y, half) in enumerate(boxes):
        assert x - half > 0 and x + half < at.width and y - half > 0 and y + half < at.height
        for u, v, other in boxes[:number]:
            assert max(abs(x - u), abs(y - v)) > half + other
    assert {r.source for r in found.ribbons} >= {"conv1", "layer4.0.downsample.0"}
    assert Usage([1], {}).shared(1) == {}
