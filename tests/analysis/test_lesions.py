"""Lesions against plain torch: weights set to 0 in a copy of the module in float64, and run."""

import json

import numpy as np
import pytest
import torch
from command import call, masks

import circuitcore as cc
from circuitcore.analysis import lesions
from circuitcore.analysis.evaluation import prepared_run
from circuitcore.analysis.lesions import KINDS, lesioned_logits, private, summarise, use_counts
from circuitcore.extraction.floor import random_mask
from circuitcore.network.forward import Tally
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import open_run

LEVELS = ["--fc-levels", "0,0.5,0.9,0.99", "--conv-levels", "0,0.5,0.9"]
LESIONED = ("Trouser", "Dress", "Bag")
LAST = "classifier.6"


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.total = [], 0

    def start(self, what, total):
        self.total += total if what == "lesions" else 0

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three circuits."""
    folder = tmp_path_factory.mktemp("lesions") / "run"
    call("sweep", *LESIONED, *LEVELS, "--device", "cpu", "--out", folder, "-q")
    return folder


@pytest.fixture(scope="module")
def prepared(swept):
    return prepared_run(swept, Silent())[1]


@pytest.fixture(scope="module")
def said(swept):
    """Every category under every lesion, and what was told."""
    told = Notes()
    return cc.open_run(swept).lesion(progress=told), told


@pytest.fixture(scope="module")
def circuits(swept):
    """Unit and masks of each circuit by name."""
    stored = [read_circuit(path) for path in open_run(swept).units().values()]
    return {each.record.category: (each.record.index, each.kept) for each in stored}


def by_hand(circuits, name, shared=None):
    """A lesion as numpy has it: the circuit, or what at most ``shared`` others have, by layer."""
    own = {layer: mask.numpy() for layer, mask in circuits[name][1].items()}
    if shared is None:
        return own
    others = [kept for other, (_, kept) in circuits.items() if other != name]
    return {
        layer: mask
        if layer == LAST
        else mask & (np.sum([kept[layer].numpy() for kept in others], axis=0) <= shared)
        for layer, mask in own.items()
    }


def without(module, unit, removed, method):
    """A copy of the module, float64, without these weights."""
    cut = method.double(module)
    with torch.no_grad():
        for layer, mask in removed.items():
            weight = cut.get_submodule(layer).weight
            part = weight[unit : unit + 1] if layer == LAST else weight
            part[torch.as_tensor(mask)] = 0
    return cut


def highest(logits):
    """Which unit's logit is above all others, -1 where two are equal: int [N]."""
    values, units = logits.topk(2, dim=1)
    return torch.where(values[:, 0] > values[:, 1], units[:, 0], -1)


def counts(said, labels, unit):
    """Hits and false alarms."""
    return int((said & (labels == unit)).sum()), int((said & (labels != unit)).sum())


@pytest.mark.parametrize("name", LESIONED)
@pytest.mark.parametrize("kind", KINDS)
def test_each_category_is_judged_as_in_a_copy_of_the_module(
    name, kind, said, circuits, example, method, prepared
):
    unit = circuits[name][0]
    removed = by_hand(circuits, name, None if kind == "circuit" else 0)
    torch_removed = {layer: torch.from_numpy(mask) for layer, mask in removed.items()}
    drawn = random_mask(prepared, unit, torch_removed, KINDS.index(kind))
    images, labels = example.splits["heldout"]
    whole = method.run(example.double, images)
    cuts = {
        "lesioned": method.run(without(example.network, unit, removed, method), images),
        "random": method.run(without(example.network, unit, drawn, method), images),
    }
    rows = [r for r in said[0].nested if (r["lesion"], r["kind"]) == (name, kind)]
    assert [row["category"] for row in rows] == example.categories
    assert {row["removed"] for row in rows} == {sum(int(m.sum()) for m in removed.values())}
    others = {row["unit"]: method.other_maximum(whole, row["unit"]) for row in rows}
    for row in rows:
        own, size = row["unit"], int((labels == row["unit"]).sum())
        for field, logits in {"unpruned": whole, **cuts}.items():
            hits, false = counts(highest(logits) == own, labels, own)
            found = row[field]
            assert (round(found["hit"] * size), found["false_alarms"]) == (hits, false), field
            rest = len(labels) - size
            exact = method.csa_fraction(hits, false, size, rest, "other")
            assert found["csa"] == pytest.approx(float(exact)) and found["bias"] == 0
        for field, logits in cuts.items():
            expected = counts(logits[:, own] > others[own], labels, own)
            at = row["substituted" if field == "lesioned" else "random_substituted"]
            assert (round(at["hit"] * size), at["false_alarms"]) == expected


def test_changes_are_differences_and_their_intervals_those_of_resampled_images(
    said, circuits, example, method, prepared
):
    """Of a private lesion, whose intervals are wide: against images drawn one by one."""
    unit = circuits["Dress"][0]
    row = next(
        r for r in said[0].nested
        if (r["lesion"], r["kind"], r["category"]) == ("Dress", "private", "Dress")
    )  # fmt: skip
    for change, one, other in (
        ("change", "lesioned", "unpruned"),
        ("random_change", "random", "unpruned"),
        ("beyond_random", "lesioned", "random"),
    ):
        assert row[change] == pytest.approx(row[one]["csa"] - row[other]["csa"])
    removed = by_hand(circuits, "Dress", 0)
    torch_removed = {layer: torch.from_numpy(mask) for layer, mask in removed.items()}
    drawn = random_mask(prepared, unit, torch_removed, KINDS.index("private"))
    images, labels = example.splits["heldout"]
    yes = [
        (highest(method.run(net, images)) == unit).double().numpy()
        for net in (
            example.double,
            without(example.network, unit, removed, method),
            without(example.network, unit, drawn, method),
        )
    ]
    generator = np.random.default_rng(7)
    own, rest = np.flatnonzero(labels == unit), np.flatnonzero(labels != unit)
    a = own[generator.integers(0, len(own), (20_000, len(own)))]
    b = rest[generator.integers(0, len(rest), (20_000, len(rest)))]
    csa = [each[a].mean(1) - each[b].mean(1) for each in yes]
    for name, values in (
        ("change_ci95", csa[1] - csa[0]),
        ("random_change_ci95", csa[2] - csa[0]),
        ("beyond_random_ci95", csa[1] - csa[2]),
    ):
        assert row[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.02)
    assert row["change_ci95"][0] < row["change"] < row["change_ci95"][1] < 0


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_private_weights_are_those_of_no_other_circuit(shared, swept, circuits):
    uses = use_counts(list(open_run(swept).units().values()))
    for name, (_, kept) in circuits.items():
        found = private(kept, uses, shared, LAST)
        expected = by_hand(circuits, name, shared)
        assert all(np.array_equal(found[layer].numpy(), expected[layer]) for layer in expected)
        if shared == 2:  # the two others: all of it
            assert all(torch.equal(found[layer], kept[layer]) for layer in kept)
    sizes = {layer: values.dtype.itemsize for layer, values in uses.items()}
    assert set(sizes.values()) == {1}, "a byte a weight"


def test_more_circuits_than_a_byte_counts(swept, circuits):
    path = next(iter(open_run(swept).units().values()))
    kept = circuits["Trouser"][1]
    uses = use_counts([path] * 300)
    assert all(np.array_equal(uses[n].reshape(m.shape), 300 * m.numpy()) for n, m in kept.items())


def test_the_random_lesion_is_as_large_in_every_layer(prepared, circuits):
    for name, (unit, kept) in circuits.items():
        for draw in (0, 1):
            drawn = random_mask(prepared, unit, kept, draw)
            for layer, mask in kept.items():
                assert drawn[layer].shape == mask.shape
                assert int(drawn[layer].sum()) == int(mask.sum()), (name, layer)
        assert any(not torch.equal(drawn[layer], kept[layer]) for layer in kept)


def test_a_lesion_of_nothing_changes_nothing(prepared, circuits):
    unit, kept = circuits["Bag"]
    none = {layer: torch.zeros_like(mask) for layer, mask in kept.items()}
    found = lesioned_logits(prepared.runner, prepared.heldout, unit, none)
    torch.testing.assert_close(found, prepared.heldout.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(highest(found), highest(prepared.heldout.logits))
    row = {LAST: torch.ones_like(kept[LAST])}  # of one row: no other logit moves
    found = lesioned_logits(prepared.runner, prepared.heldout, unit, row)
    others = [k for k in range(10) if k != unit]
    torch.testing.assert_close(found[:, others], prepared.heldout.logits[:, others])
    bias = prepared.runner.network.biases[LAST][unit]
    assert torch.equal(found[:, unit], bias.expand(len(found)))


def test_the_cost_is_said_before_and_bounds_what_is_run(said, prepared, circuits):
    told = said[1]
    assert told.total == 6
    (note,) = [each for each in told.notes if "FPE" in each]
    assert "6 of 6 lesions" in note and "12 passes over 300 held-out images" in note
    assert "at most 18.0 FPE" in note  # 12 passes of 300 images, over 200 extraction images
    unit, kept = circuits["Bag"]
    images, sizes = len(prepared.heldout), prepared.runner.sizes
    for removed in (kept, {LAST: kept[LAST]}):
        tally = Tally()
        lesioned_logits(prepared.runner, prepared.heldout, unit, removed, tally)
        bound = images * sizes.multiply_adds
        assert tally.multiply_adds == bound if removed is kept else tally.multiply_adds < bound / 2


def test_nothing_is_computed_twice(said, swept, monkeypatch):
    asked = []
    own = lesions.lesioned_logits

    def counted(*given, **more):
        asked.append(given[2])
        return own(*given, **more)

    monkeypatch.setattr(lesions, "lesioned_logits", counted)
    run, before = cc.open_run(swept), said[0]
    assert run.lesion().nested == before.nested and not asked
    first = next((swept / "lesions").glob("*.private-0.json"))
    first.write_text(first.read_text()[:100])  # damaged: that one alone is made anew
    assert run.lesion().nested == before.nested and len(asked) == 2
    asked.clear()
    (bag,) = {row["lesion"] for row in run.lesion(categories="Bag", kinds="circuit")}
    assert bag == "Bag" and not asked
    wider = run.lesion(categories="Bag", kinds="private", shared=1)
    assert len(asked) == 2 and wider[0]["removed"] > before.summary[-1]["removed"]


def test_private_lesions_are_made_anew_where_another_circuit_was_added(swept, tmp_path):
    import shutil

    folder = shutil.copytree(swept, tmp_path / "run")
    gone = open_run(folder).circuit_path(3)  # Dress
    kept = gone.read_bytes()
    gone.unlink()
    two = cc.open_run(folder).lesion(categories="Bag", kinds="private")
    gone.write_bytes(kept)
    three = cc.open_run(folder).lesion(categories="Bag", kinds="private")
    assert three[0]["removed"] < two[0]["removed"]


def test_the_summary_is_of_the_matrix(said):
    rows, summary = said[0], said[0].summary.nested
    for kind in KINDS:
        cut, names, matrix = rows.matrix(kind)
        beyond = rows.matrix(kind, "beyond_random_high")[2]
        assert cut == LESIONED and len(names) == 10 and matrix.shape == (3, 10)
        for place, name in enumerate(cut):
            row = next(r for r in summary if (r["lesion"], r["kind"]) == (name, kind))
            at = names.index(name)
            rest = np.delete(matrix[place], at)
            assert row["own"] == matrix[place, at]
            assert row["others"] == pytest.approx(rest.mean())
            assert row["others_ci95"][0] < row["others"] < row["others_ci95"][1]
            assert row["harmed"] == int((np.delete(beyond[place], at) < 0).sum())
    with pytest.raises(cc.UsageError, match="no 'nothing' of lesions"):
        rows.matrix("circuit", "nothing")


def test_a_private_lesion_takes_its_own_category_alone(said):
    """What the control is for: whole circuits of this network take every category with them."""
    for row in said[0].summary.nested:
        if row["kind"] == "private":
            assert row["own"] < row["own_random"] - 0.3 and row["others"] > -0.15
        else:
            assert row["others"] < -0.5 and row["others_random"] < -0.5
    assert summarise([]) == []


def test_as_a_command(said, swept):
    text = call("lesion", swept).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("private") == 3 and "by the random lesion" in text
    harmed = sum(row["harmed"] for row in said[0].summary)
    assert f"{harmed} of 54 others" in text  # six lesions, nine others each
    rows = json.loads(call("lesion", swept, "Bag", "--kind", "private", "--format", "json").stdout)
    assert [row["category"] for row in rows] == [
        row["category"] for row in said[0] if (row["lesion"], row["kind"]) == ("Bag", "private")
    ]
    told = call("lesion", swept, "--kind", "shared", code=2).stderr
    assert "circuit or private" in told
    assert "0 or more" in call("lesion", swept, "--shared", -1, code=2).stderr
    assert "none are asked" in call(
        "lesion", swept, "--kind", "circuit", "--shared", 1, code=2
    ).stderr  # fmt: skip
    assert "not done yet" in call("lesion", swept, "Coat", code=3).stderr
    assert masks(swept)
