"""Circuits from scoring images drawn again, against the float64 reference on the same draws."""

import json

import numpy as np
import pytest
import torch
from command import call

import circuitcore as cc
from circuitcore.analysis.resampling import run as resampling
from circuitcore.analysis.resampling.counts import CORE, NEVER, Counts, row_of
from circuitcore.analysis.resampling.drawing import Drawing
from circuitcore.analysis.resampling.kept import FILE
from circuitcore.analysis.statistics import least_count
from circuitcore.bundled import CATEGORIES, IMAGES
from circuitcore.scoring.seeds import unit_seed

DRAWS = 6
NEAR = 2e-4  # parts of the weights that rounding may move


@pytest.fixture(scope="module")
def small(own_small):
    """Its own copy: what is kept in the folder is seen by no other test."""
    return own_small


@pytest.fixture(scope="module")
def drawn(small):
    return cc.open_run(small.folder).stability(
        categories="Bag", resamples=DRAWS, pool=8, certify=None
    )


def circuits(method, example, run, drawing):
    """Masks of each resample by layer, the reference's, from the pool's own files."""
    record = run["Bag"].record
    pool = method.load_images(
        IMAGES, CATEGORIES, *statistics_of(example), scoring=drawing.pool, extraction=1, heldout=1
    )["scoring"]
    images = pool[0][pool[1] == record.index]
    found = []
    for places in drawing.draws(unit_seed(0, record.index)):
        scores = method.score(example.double, images[torch.from_numpy(places)], record.index)
        masks = {}
        for stage in record.stages:
            own = {name: scores[name] for name in method.layers(example.double, stage.stage)}
            ranking = method.rank(
                example.double, record.index, method.normalise(own, "paper", stage.stage)
            )
            gone = stage.relevant_weights - stage.levels[stage.chosen].kept_weights
            masks |= method.masks_of(ranking, gone)
        found.append({name: mask.numpy().ravel() for name, mask in masks.items()})
    return found


def statistics_of(example):
    from circuitcore.bundled.network import load_bundled

    own = load_bundled()[2]
    return own.mean, own.std


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_rows_are_those_of_the_reference(small, drawn, method, example):
    run = cc.open_run(small.folder)
    masks = circuits(method, example, run, Drawing(DRAWS, 8, 4, None))
    own = {name: mask.numpy().ravel() for name, mask in run["Bag"].masks.items()}
    layers = list(own)
    assert [row["layer"] for row in drawn] == ["", *layers]
    for row in drawn:
        names = [row["layer"]] if row["layer"] else layers
        each = [np.concatenate([m[name] for name in names]) for m in masks]
        circuit = np.concatenate([own[name] for name in names])
        share = np.mean(each, axis=0)
        assert (row["relevant"], row["kept"]) == (len(circuit), circuit.sum())
        slack = max(NEAR, 4 / len(circuit))
        assert row["core"] == pytest.approx((share >= CORE).mean(), abs=slack)
        assert row["never"] == pytest.approx((share <= NEVER).mean(), abs=slack)
        assert row["core"] + row["contingent"] + row["never"] == pytest.approx(1)
        assert row["majority"] == pytest.approx((share > 0.5).sum(), abs=slack * len(circuit))
        pairs = [overlap(a, b) for i, a in enumerate(each) for b in each[:i]]
        assert row["ceiling"] == pytest.approx(np.mean(pairs), abs=5e-3)
        assert row["ceiling_min"] == pytest.approx(min(pairs), abs=1e-2)
        assert row["ceiling_max"] == pytest.approx(max(pairs), abs=1e-2)
        with_circuit = np.mean([overlap(a, circuit) for a in each])
        assert row["overlap"] == pytest.approx(with_circuit, abs=5e-3)
    parts = [(len(own[name]), own[name].mean()) for name in layers]  # of independent masks as dense
    chance = sum(n * p * p for n, p in parts) / sum(n * (2 * p - p * p) for n, p in parts)
    assert drawn[0]["chance"] == pytest.approx(chance)
    assert drawn[0]["ceiling"] > 2 * chance


def test_certified_weights_are_counted_from_the_least_count():
    kept_by = np.zeros(101, np.int64)
    kept_by[[0, 30, 60, 99, 100]] = [50, 10, 10, 10, 20]
    inside = np.zeros(101, np.int64)
    inside[[30, 99, 100]] = [2, 3, 15]
    both = np.full((101, 101), 20)
    counted = Counts(kept_by, inside, both, np.array([1.0, 4.0]))
    alone, whole = least_count(100, 32, 4, 1, 0.01), least_count(100, 32, 4, 1, 1e-4)
    assert 60 < alone < whole < 99
    row = row_of("x", "", counted, (100, 99))
    assert row.majority == 40
    assert (row.certified, row.circuit_certified) == (20 / 40, 15 / 20)
    assert (row.each_certified, row.each_circuit_certified) == (30 / 40, 18 / 20)
    assert row.ceiling == 1.0 and row.chance == 0.25
    none = row_of("x", "", counted, (None, None))
    assert none.certified is None and none.each_circuit_certified is None


def test_a_second_call_computes_nothing_and_goes_on(small, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(small.folder, folder)
    run = cc.open_run(folder)
    first = run.stability(categories="Bag", resamples=3, pool=6)
    scored = []
    real = resampling.scored_by
    monkeypatch.setattr(
        resampling, "scored_by", lambda *given: scored.append(given[2]) or real(*given)
    )
    both = run.stability(resamples=3, pool=6)
    assert scored == [CATEGORIES.index("Trouser")]
    assert [r for r in both if r["category"] == "Bag"] == list(first)
    again = run.stability(resamples=3, pool=6)
    assert len(scored) == 1 and list(again) == list(both)
    kept = folder / FILE
    assert run.noise_ceiling == pytest.approx(
        np.mean([row["ceiling"] for row in both if not row["layer"]])
    )
    kept.write_text(kept.read_text()[:-40])  # damaged: made anew
    assert run.noise_ceiling is None
    assert list(run.stability(resamples=3, pool=6)) == list(both) and len(scored) == 3


def test_what_cannot_be_is_refused(small, tmp_path):
    run = cc.open_run(small.folder)
    for wrong, said in (
        ({"resamples": 1}, "--resamples: 1, 2 to 255"),
        ({"resamples": 0}, "--resamples: 0, 2 to 255"),
        ({"resamples": 300}, "--resamples: 300, 2 to 255"),
        ({"pool": 4}, "--pool: 4 images, and 4"),
        ({"certify": 9}, r"--certify: 9 of 32 images replaced; .* at most \d can be certified"),
        ({"certify": 1, "resamples": 10}, "none can be certified"),
    ):
        with pytest.raises(cc.UsageError, match=said):
            run.stability(**wrong)
    with pytest.raises(cc.InputError, match="--pool 40: .*32 images, 40 for scoring"):
        run.stability(pool=40)
    said = call("stability", small.folder, "--resamples", 0, code=2).stderr  # not the default
    assert "--resamples: 0, 2 to 255" in said


def test_the_command(small):
    said = call("stability", small.folder, "Bag", "--resamples", DRAWS, "--pool", 8)
    head, _, row, *choice = said.stdout.splitlines()
    assert head.split() == [
        "category",
        "core",
        "contingent",
        "never",
        "ceiling",
        "chance",
        "overlap",
    ]
    assert row.split()[0] == "Bag" and all(len(line) <= 80 for line in (head, row))
    assert choice[1].split() == [
        "category", "kept", "at", "-0.05", "at", "+0.05", "thresholds", "images", "moved",
    ]  # fmt: skip
    assert choice[3].split()[0] == "Bag" and all(len(line) <= 80 for line in choice)
    assert "--seed draws nothing that is in a circuit" in said.stdout
    rows = json.loads(
        call(
            "stability", small.folder, "--resamples", DRAWS, "--pool", 8, "--format", "json"
        ).stdout
    )
    assert {row["category"] for row in rows} == {"Trouser", "Bag"}
    refused = call("stability", "Bag", "--resamples", 5, code=2).stderr
    assert "--resamples and --certify are of a run folder, not 'Bag'" in refused
    refused = call("stability", small.folder, "--criterion", "snip", code=2).stderr
    assert "--criterion is the run's own" in refused
