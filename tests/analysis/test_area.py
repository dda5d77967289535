"""CPR and CMD: against integrals known in closed form, scipy's trapezoids, and curves by hand."""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet
import pytest
from command import call
from hypothesis import given
from hypothesis import strategies as st
from made_up import category
from scipy.integrate import trapezoid

import circuitcore as cc
from circuitcore.analysis import area as areas
from circuitcore.analysis.area import NO_EMPTY, area, curve_of
from circuitcore.analysis.summary import NO_FAITHFULNESS
from circuitcore.options import Options
from circuitcore.records import Level
from circuitcore.runs.folder import RunFolder, open_run

GRID = "0,0.5,0.9,0.99,0.999"
KEPT = np.geomspace(1, 0.001, 200)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs whose curves go down to 0.001 kept: by score, and at random, the control."""
    root = tmp_path_factory.mktemp("area")
    options = {"categories": ["Trouser", "Bag"], "levels": GRID, "device": "cpu"}
    return [cc.sweep(out=root / name, criterion=name, **options) for name in ("actgrad", "random")]


def test_areas_known_in_closed_form():
    width = 1 - 0.001
    for phi, cpr in ((np.ones(200), 1.0), (np.zeros(200), 0.0), (KEPT, (1 - 1e-6) / 2 / width)):
        found = area(KEPT, phi)
        assert found.cpr == pytest.approx(cpr, abs=1e-12)
        assert found.cmd == pytest.approx(1 - cpr, abs=1e-12)  # phi never rises above 1
        assert found.covered == pytest.approx(1)
    log = area(KEPT, 1 + np.log(KEPT) / math.log(1000), "log")
    assert (log.cpr, log.cmd) == pytest.approx((0.5, 0.5))
    assert area(KEPT, np.full(200, 1.5)).cmd == pytest.approx(0.5)  # above 1 is off as well


@given(
    st.lists(st.tuples(st.floats(0.002, 0.999), st.floats(-1, 2)), min_size=1, max_size=20),
    st.sampled_from(["linear", "log"]),
)
def test_it_is_the_trapezoid_of_scipy(points, axis):
    points = sorted({round(x, 6): y for x, y in points}.items())
    kept, phi = (np.array(v) for v in zip(*[(0.001, 0.25), *points, (1.0, 1.0)], strict=True))
    place = np.log(kept) if axis == "log" else kept
    found = area(kept[::-1], phi[::-1], axis)
    width = place[-1] - place[0]
    assert found.cpr == pytest.approx(trapezoid(phi, place) / width, abs=1e-9)
    assert found.cmd == pytest.approx(trapezoid(abs(1 - phi), place) / width, abs=1e-9)


def test_a_range_is_cut_between_levels_and_never_made_longer():
    kept, phi = np.array([1, 0.5, 0.1]), np.array([1.0, 1.0, 0.0])
    assert area(kept, phi).covered == pytest.approx(0.9 / 0.999)
    assert area(kept, phi, "log").covered == pytest.approx(1 / 3)
    cut = area(kept, phi, least=0.3)  # phi is 0.5 there, half way
    assert cut.cpr == pytest.approx((0.5 + 0.2 * 0.75) / 0.7)
    empty = np.array([1, 0.5, 0.0])
    assert area(empty, phi).covered == pytest.approx(1)
    assert area(empty, phi, "log").covered == pytest.approx(math.log(2) / math.log(1000))
    with pytest.raises(ValueError, match="two levels"):
        area(kept[:1], phi[:1])


def by_hand(folder, category, stage):
    """Kept fractions and faithfulness of hits, from the files as pyarrow and JSON read them."""
    rows = [
        row
        for row in pyarrow.parquet.read_table(folder / "curves.parquet").to_pylist()
        if (row["category"], row["stage"]) == (category, stage)
    ]
    said = {c["category"]: c for c in json.loads(
        call("sweep", "Trouser", "Bag", "--levels", GRID, "--device", "cpu", "--out", folder,
             "--format", "json").stdout)["categories"]}[category]  # fmt: skip
    empty = said["empty"]["extraction"]["hit"]
    top = said["unpruned"]["extraction_biased"]["hit"]
    kept = np.array([row["kept_weights"] for row in rows]) / rows[0]["kept_weights"]
    return kept, np.array([(row["hit"] - empty) / (top - empty) for row in rows])


def test_the_bundled_run_from_its_files(whole):
    run, random = whole
    rows = run.area()
    for row in (row for row in rows if row["category"]):
        kept, phi = by_hand(run.folder, row["category"], row["stage"])
        assert row["levels"] == row["of"] == len(kept) == 5 and row["undefined"] is None
        for name, place in (("", kept), ("_log", np.log(kept))):
            width = place[0] - place[-1]
            cpr = -trapezoid(phi, place) / width
            assert row[f"cpr{name}"] == pytest.approx(cpr, abs=2e-3)  # the cut at 0.001
            assert row[f"cmd{name}"] == pytest.approx(
                -trapezoid(abs(1 - phi), place) / width, abs=2e-3
            )
        assert row["cpr_at_least"] == row["cpr_at_most"] == row["cpr_covered"] == row["cpr"]
        assert (row["control"], row["control_cpr"], row["control_cmd"]) == ("empty", 0, 1)
        assert (row["circuit_phi"] is not None) == (row["stage"] == "conv")
    means = [row for row in rows if not row["category"]]
    for mean in means:
        own = [row["cpr"] for row in rows if row["category"] and row["stage"] == mean["stage"]]
        assert mean["cpr"] == pytest.approx(np.mean(own)) and mean["categories"] == 2
        assert mean["cpr_low"] == pytest.approx(min(own))  # of two, a quarter of draws each
        assert mean["cpr_high"] == pytest.approx(max(own))


def test_scores_lie_above_random_ones(whole):
    run, random = whole
    beside, alone = run.area(control=random), random.area()
    for row, own in zip(beside, alone, strict=True):
        assert row["control"] == "random"
        assert row["control_cpr"] == pytest.approx(own["cpr"], abs=1e-3)
        assert row["above_control"] == pytest.approx(row["cpr_covered"] - row["control_cpr"])
        if not row["category"]:
            assert row["above_control_low"] > 0.2


def test_where_levels_end_early_it_says_so(small):
    rows = cc.open_run(small.folder).area()
    for row in rows:
        assert row["cpr"] is row["cmd"] is row["cpr_log"] is None
        least = 0.01 if row["stage"] == "fc" else 0.1
        assert row["least_kept"] == pytest.approx(least, rel=0.01)
        assert row["covered"] == pytest.approx((1 - least) / 0.999, rel=1e-3)
        assert "--screen off" in row["undefined"]
        assert row["cpr_covered"] is not None
    said = call("area", small.folder).stdout
    assert "NA" in said and max(map(len, said.splitlines())) <= 80
    assert "the sparsest level keeps 0.01" in " ".join(said.split())


def test_levels_that_a_stop_rule_left_out(tmp_path):
    run = cc.sweep(
        categories=["Dress", "Bag"], levels=GRID, screen="on", criterion="random", device="cpu",
        out=tmp_path / "run",
    )  # fmt: skip
    rows = run.area()
    early = [row for row in rows if row["category"] and row["levels"] < 5]
    assert early
    for row in early:
        assert row["cpr"] is None and "levels were not run" in row["undefined"]
        assert row["cpr_at_least"] <= row["cpr_covered"] <= row["cpr_at_most"]
    assert "levels were screened" in " ".join(call("area", run.folder).stdout.split())
    for mean in (row for row in rows if not row["category"]):
        mine = [r for r in rows if r["category"] and r["stage"] == mean["stage"]]
        if any(row["cpr"] is None for row in mine):
            assert mean["cpr"] is None and "not whole" in mean["undefined"]
        assert mean["least_kept"] == max(row["least_kept"] for row in mine)


def curve_from(record, **options):
    return curve_of(record, "fc", Options(**options), "csa")


def test_a_gap_ends_the_curve_and_bounds_go_with_it():
    record = category(1, "a")
    record = record.model_copy(update={"stages": [
        record.stages[0].model_copy(update={
            "levels": [x for x in record.stages[0].levels if x.level != 7]})]})  # fmt: skip
    curve = curve_from(record, levels=",".join(str(1 - 0.5**t) for t in range(12)))
    assert len(curve.kept) == 7 and curve.missing.startswith("1 of 12 levels were not run")
    assert curve.phi[0] == pytest.approx((0.94 - 0.5) / (0.85 - 0.5))
    assert curve.high[5] > curve.phi[5] == curve.low[5]
    assert curve.high[4] == curve.phi[4]


def test_a_curve_with_levels_judged_in_part_is_not_whole():
    grid = ",".join(str(1 - 0.5**t) for t in range(12))
    curve = curve_from(category(1, "a"), levels=grid)
    assert curve.kept[-1] < 0.001 and not curve.exact
    assert curve.missing.startswith("1 of 12 levels were judged on part")
    hits = curve_of(category(1, "a"), "fc", Options(levels=grid), "hit")
    assert hits.exact and hits.missing is None


def test_a_level_without_bounds_is_itself():
    first = category(1, "a").stages[0].levels[0]
    assert isinstance(first, Level) and first.hit_lo is None
    curve = curve_of(category(1, "a"), "fc", Options(), "hit")
    assert (curve.low == curve.phi).all() and (curve.high == curve.phi).all()


def test_what_has_no_curve_is_counted_with_its_reason(small, monkeypatch):
    trouser, bag = open_run(small.folder).records()
    worse = trouser.unpruned.model_copy(update={"extraction_biased": trouser.empty.extraction})
    none = trouser.model_copy(update={"unpruned": worse})
    assert curve_from(none) == NO_FAITHFULNESS
    assert curve_from(trouser.model_copy(update={"empty": None})) == NO_EMPTY
    undefined = category(2, "c", defined=False)
    assert curve_from(undefined) == undefined.undefined
    monkeypatch.setattr(RunFolder, "records", lambda self: [none, bag])
    rows = {(r.category, r.stage): r for r in areas.areas(open_run(small.folder))}
    left, mean = rows["Trouser", "fc"], rows["", "fc"]
    assert left.undefined == NO_FAITHFULNESS and left.cpr_covered is None
    assert (mean.categories, mean.left_out) == (1, 1) and mean.cpr_covered_ci95 is None
    assert mean.cpr_covered == rows["Bag", "fc"].cpr_covered
    shown = " ".join(call("area", small.folder).stdout.split())
    assert f"NA in 2 curves: {NO_FAITHFULNESS}" in shown and "fc: 1 left out (NA)" in shown
    monkeypatch.setattr(RunFolder, "records", lambda self: [none])
    assert areas.areas(open_run(small.folder))[-1].undefined == "no category has a curve"
    monkeypatch.setattr(RunFolder, "records", lambda self: [])
    assert areas.areas(open_run(small.folder)) == []


def test_two_categories_of_one_name_have_their_folders_names(small):
    run = open_run(small.folder)
    listed = [{**c, "name": "twin"} for c in run.manifest["categories"]]
    twins = dataclasses.replace(run, manifest={**run.manifest, "categories": listed})
    folders = {c["index"]: c["folder"] for c in listed}
    assert list(areas.named_records(twins)) == [folders[unit] for unit in run.units()]


def test_of_accuracy_where_asked(small):
    rows = cc.open_run(small.folder).area(measure="csa")
    record = open_run(small.folder).records()[0]
    floor, top = record.empty.extraction.csa, record.unpruned.extraction_biased.csa
    stage = record.stages[0]
    phi = [(x.csa - floor) / (top - floor) for x in stage.levels]
    kept = [x.kept_weights / stage.relevant_weights for x in stage.levels]
    wanted = -trapezoid(phi, kept) / (kept[0] - kept[-1])
    assert rows[0]["measure"] == "csa" and rows[0]["cpr_covered"] == pytest.approx(wanted)


def test_of_other_targets_the_judge_is_the_measure(tmp_path):
    options = {"extraction_images": 20, "heldout_images": 15, "levels": "0,0.3,0.999"}
    run = cc.sweep(target="features.1:2-3", out=tmp_path / "run", **options)
    row = run.area()[0]
    levels = run.document.targets[0].stages[0].levels
    kept = [x.kept_weights / levels[0].kept_weights for x in levels]
    wanted = -trapezoid([x.value or 0 for x in levels], kept) / (1 - kept[-1])
    assert row["measure"] == "correlation" and row["cpr_covered"] == pytest.approx(wanted, abs=3e-3)
    with pytest.raises(cc.UsageError, match="--measure csa"):
        run.area(measure="csa")


def test_the_command(whole, small):
    run, random = whole
    said = call("area", run.folder, "--control", random.folder).stdout
    assert "control (random)" in " ".join(said.split()) and "mean of 2" in said
    assert max(map(len, said.splitlines())) <= 80
    rows = json.loads(call("area", run.folder, "--format", "json").stdout)
    assert {row["category"] for row in rows} == {"", "Trouser", "Bag"}
    assert call("area", run.folder, "--format", "csv").stdout.startswith("category,stage,measure")
    assert "one of judge, csa" in call("area", run.folder, "--measure", "x", code=2).stderr
    assert "no run folder" in call("area", small.folder.parent / "none", code=3).stderr
