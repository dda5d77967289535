"""Every question that can be asked of finished circuits, by its command, one after the other.

On five categories of the bundled example at a few levels.  What one verb computes is held to an
independent computation in the tests of its own file; here it is what they print and keep, whether
their numbers agree with one another and with the masks on disk, and that the report shows them.
"""

import html
import json
import math
import re
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from command import call, masks
from scipy import stats

from circuitcore.bundled import IMAGES

NAMES = ["Trouser", "Dress", "Coat", "Sandal", "Bag"]
FEW = ["--extraction-images", 10, "--heldout-images", 10, "--device", "cpu"]
LEVELS = ["--fc-levels", "0,0.5,0.9,0.98,0.999", "--conv-levels", "0,0.5,0.9,0.999"]
LAST = "classifier.6"
DRAW = ["--resamples", 45, "--pool", 28, "--certify", 1]
HEADINGS = ["Summary", "Sparsity and accuracy", "Overlap", "Controls", "Accuracy along the sweep",
            "Who shares with whom", "How sure circuits are", "Sharing by depth",
            "Area under the curves", "Other images", "Lesions", "Categories",
            "Circuits one by one", "What it cost"]  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What each command said as JSON, and as a table; the run folder and its first report."""
    root = tmp_path_factory.mktemp("science")
    folder, lower = root / "run", root / "lower"
    found, shown = SimpleNamespace(), {}

    def both(name, *command):
        setattr(found, name, json.loads(call(name, *command, "--format", "json").stdout))
        shown[name] = call(name, *command).stdout

    call("sweep", *NAMES, *FEW, *LEVELS, "--out", folder, "-q")
    call("extract", folder, "--threshold", 0.5, "--out", lower, "-q")
    before = (folder / "report.html").read_text()
    both("stability", folder, *DRAW)
    both("structure", folder)
    both("area", folder)
    both("lesion", folder)
    both("controls", folder)
    both("evaluate", folder, "--images", IMAGES)
    both("compare", folder, lower)
    path = call("report", folder).stdout.strip()
    assert path == str(folder / "report.html")
    after = (folder / "report.html").read_text()
    return SimpleNamespace(
        said=found, shown=shown, folder=folder, lower=lower, before=before, after=after
    )


def numbers(value):
    """Every number of a JSON value."""
    if isinstance(value, dict):
        return [n for each in value.values() for n in numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in numbers(each)]
    return [value] if isinstance(value, int | float) else []


def circuits(folder):
    """Kept weights, bool [weights] by layer, of each category."""
    found = {}
    for key, bits in masks(folder).items():
        name, layer = key.split("/")
        found.setdefault(name, {})[layer] = np.unpackbits(bits).astype(bool)
    return found


def overlap(one, other, same_row=False):
    """Jaccard; of two categories' rows of the last layer nothing is shared."""
    both = sum(int((one[n] & other[n]).sum()) for n in one if same_row or n != LAST)
    either = sum(int(one[n].sum() + other[n].sum()) for n in one) - both
    return both / either


def headings(page):
    return [html.unescape(each) for each in re.findall(r"<h2>(.*?)</h2>", page)]


def test_all_is_finite_and_fits_a_terminal(asked):
    for name, value in vars(asked.said).items():
        some = numbers(value)
        assert len(some) > 10 and all(map(math.isfinite, some)), name
    for name, text in asked.shown.items():
        wide = [line for line in text.splitlines() if len(line) > 80]
        assert text.count("\n") > 5 and not wide, (name, wide)


def test_stability_is_between_chance_and_one(asked):
    whole = [row for row in asked.said.stability if not row["layer"]]
    assert [row["category"] for row in whole] == NAMES
    kept = {name: sum(int(m.sum()) for m in each.values()) for name, each in circuits(
        asked.folder).items()}  # fmt: skip
    for row in asked.said.stability:
        assert row["core"] + row["contingent"] + row["never"] == pytest.approx(1)
        if row["majority"]:
            assert 0 <= row["certified"] <= row["each_certified"] <= 1
    for row in whole:
        assert row["kept"] == kept[row["category"]]
        assert row["chance"] < row["ceiling_min"] <= row["ceiling"] <= row["ceiling_max"] <= 1
        assert 0 < row["threshold_ceiling"] <= 1 and 0 < row["extraction_ceiling"] <= 1
        # what is certified is kept by more than 95 % here, and core is counted over all weights
        assert row["certified"] * row["majority"] <= row["core"] * row["relevant"] + 1
    assert {row["threshold_ceiling"] for row in asked.said.stability if row["layer"]} == {None}


def test_structure_counts_what_the_masks_share(asked):
    own = circuits(asked.folder)
    pairs = [overlap(own[a], own[b]) for a, b in combinations(NAMES, 2)]
    whole, *layers = asked.said.structure["shared"]
    assert (whole["mean"], whole["min"], whole["max"]) == pytest.approx(
        (np.mean(pairs), min(pairs), max(pairs))
    )
    ceilings = [r["ceiling"] for r in asked.said.stability if not r["layer"]]
    assert whole["ceiling"] == pytest.approx(np.mean(ceilings))
    assert {row["layer"] for row in layers} == own["Bag"].keys()
    assert layers[-1]["layer"] == LAST and layers[-1]["max"] == 0
    for row in asked.said.structure["units"]:
        assert row["hubs"] + row["private"] + row["unused"] <= row["units"]


def test_area_is_between_the_empty_circuit_and_the_network(asked):
    means = {row["stage"]: row for row in asked.said.area if not row["category"]}
    assert list(means) == ["fc", "conv"] and len(asked.said.area) == 2 * (len(NAMES) + 1)
    for stage, row in means.items():
        mine = [r["cpr"] for r in asked.said.area if r["category"] and r["stage"] == stage]
        assert row["cpr"] == pytest.approx(np.mean(mine)) and row["control_cpr"] == 0
        low, high = row["cpr_ci95"]
        assert 0 < low <= row["cpr"] <= high < 1.2
    assert means["fc"]["cpr"] > means["conv"]["cpr"]  # its curve begins at the fc circuit


def test_lesions_are_of_every_category_and_beside_random_ones(asked):
    own = circuits(asked.folder)
    rows = {(r["lesion"], r["kind"], r["category"]): r for r in asked.said.lesion}
    assert len(rows) == len(NAMES) * 2 * 10
    for name in NAMES:
        others = [own[other] for other in NAMES if other != name]
        alone = sum(
            int((mask & ~np.any([each[layer] for each in others], axis=0)).sum())
            if layer != LAST else int(mask.sum())
            for layer, mask in own[name].items()
        )  # fmt: skip
        assert rows[name, "private", name]["removed"] == alone
        assert rows[name, "circuit", name]["removed"] == sum(
            int(m.sum()) for m in own[name].values()
        )
        assert rows[name, "circuit", name]["change"] < 0
    for row in rows.values():
        assert row["beyond_random"] == pytest.approx(row["change"] - row["random_change"])


def test_controls_are_less_than_their_circuits_by_what_is_said(asked):
    csa = {(r["category"], r["control"]): r["heldout"]["csa"] for r in asked.said.controls}
    lines = asked.shown["controls"].split(" mean ")[1].splitlines()
    for kind in ("random", "weight-magnitude", "complement", "empty", "other-category"):
        gaps = np.array([csa[name, "circuit"] - csa[name, kind] for name in NAMES])
        interval = stats.bootstrap(
            (gaps,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
        ).confidence_interval
        row = next(line for line in lines if line.startswith(f" {kind} "))
        difference, low, _, high = map(float, re.sub(" to ", " 0 ", row).split()[-4:])
        assert difference == pytest.approx(gaps.mean(), abs=6e-4)
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.02)


def test_the_same_images_from_another_folder_say_the_same(asked):
    own = {r["category"]: r["heldout"]["csa"] for r in asked.said.controls
           if r["control"] == "circuit"}  # fmt: skip
    random = {r["category"]: r["heldout"]["csa"] for r in asked.said.controls
              if r["control"] == "random"}  # fmt: skip
    for row in asked.said.evaluate:
        assert row["circuit"]["csa"] == row["refitted"]["circuit"]["csa"] == own[row["category"]]
        assert row["random"]["csa"] == random[row["category"]]
        assert row["over_random"] == pytest.approx(own[row["category"]] - row["random"]["csa"])


def test_compare_finds_the_smaller_circuits_inside(asked):
    own, lower = circuits(asked.folder), circuits(asked.lower)
    assert [row["category"] for row in asked.said.compare["categories"]] == NAMES
    assert "threshold" in {each["name"] for each in asked.said.compare["differing"]}
    for row in asked.said.compare["categories"]:
        one, other = own[row["category"]], lower[row["category"]]
        assert row["overlap"] == pytest.approx(overlap(one, other, same_row=True))
        assert row["pruned_b"] >= row["pruned_a"]


def test_the_report_shows_what_was_asked(asked):
    said, before, after = asked.said, asked.before, asked.after
    assert headings(after) == HEADINGS
    assert headings(before) == [
        h for h in HEADINGS if h not in ("Controls", "Other images", "Lesions")
    ]
    assert before.count("<svg") + 1 == after.count("<svg") == 6
    assert "noise ceiling" not in re.search(r"<h2>Overlap</h2>.*?</section>", before, re.S).group()
    assert re.search(r"noise ceiling 0\.\d{3}", after)
    text = re.sub(r"<svg.*?</svg>", "", after, flags=re.S)
    assert not re.search(r"\b(nan|inf|None)\b", text)
    section = re.search(r"<h2>How sure circuits are</h2>.*?</section>", text, re.S).group()
    whole = [row for row in said.stability if not row["layer"]]
    core, ceiling = (np.mean([row[name] for row in whole]) for name in ("core", "ceiling"))
    assert f"<td>whole circuits</td><td>{100 * core:.2f} %</td>" in section
    assert f"<td>{ceiling:.3f}</td>" in section and "of which <em>moved</em>" in section
    assert all(f"<td>{row['layer']}</td>" in section for row in said.stability if row["layer"])
    units = said.structure["units"][0]
    assert f"<td>{units['layer']}</td><td>{units['units']}</td>" in text
    cpr = next(r["cpr"] for r in said.area if not r["category"])
    assert f"<td>fc</td><td>{cpr:.3f}</td>" in text
    assert text.count("of 9</td>") == 2 * len(NAMES)  # a lesion, and whom else it harmed
    row = re.search(r"<td>frozen</td>(.*?)</tr>", text, re.S).group(1)
    shown = [float(each) for each in re.findall(r"<td>([-\d.]+)</td>", row)]
    csas = [[r[name]["csa"] for r in said.evaluate] for name in ("circuit", "unpruned", "random")]
    assert shown[0] == len(NAMES)
    assert shown[1:4] == pytest.approx([np.mean(each) for each in csas], abs=6e-4)
    low, high = (float(end) for end in re.search(
        r"CSA, held-out.*?<td>([-\d.]+) to ([-\d.]+)</td>", text, re.S).groups())  # fmt: skip
    mean = np.mean([r["heldout"]["csa"] for r in said.controls if r["control"] == "circuit"])
    assert low < mean < high


def test_what_is_damaged_or_of_other_circuits_is_not_shown(asked, tmp_path):
    folder = shutil.copytree(asked.folder, tmp_path / "run")
    for path in (folder / "structure.json", folder / "resamples.json",
                 *folder.glob("lesions/*.private-0.json")):  # fmt: skip
        path.write_text(path.read_text()[:-30])
    call("report", folder)
    page = (folder / "report.html").read_text()
    assert headings(page) == HEADINGS
    assert "<th>core</th>" not in page and "hubs" not in page and "private weights" not in page
    assert "<h2>Lesions</h2>" in page and "whole circuits" in page
    shutil.copy(asked.folder / "structure.json", folder)
    gone = sorted(folder.glob("units/*/*.safetensors"))[0]
    gone.unlink()  # the others are the same circuits, but not those that were compared
    call("report", folder)
    assert "hubs" not in (folder / "report.html").read_text()
