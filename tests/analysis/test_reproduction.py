"""`reproduce`: every reading is the sweep it stands for, and its distance what it says."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import call

import circuitcore
from circuitcore.analysis.reproduction import kept
from circuitcore.analysis.reproduction.document import FamilyCost, Reproduction
from circuitcore.analysis.reproduction.document import kept as kept_document
from circuitcore.analysis.reproduction.grid import AXES, OPEN, named, readings
from circuitcore.analysis.reproduction.published import PUBLISHED, Figure
from circuitcore.analysis.reproduction.summary import summarised, with_nearest
from circuitcore.engine.prepare import prepare
from circuitcore.errors import UsageError
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.extraction.readings import Read, read_family
from circuitcore.extraction.stage import scored
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import PRESETS, Options
from circuitcore.progress import Silent
from circuitcore.records import Accuracy
from circuitcore.report.reproduction import page
from circuitcore.runs import families
from circuitcore.runs.folder import open_run

LEVELS = ["--levels", "0,0.3,0.6,0.9,0.97,0.99"]
NAMES = ["Trouser", "Shirt", "Bag"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """(document, run folder, what was said) of `reproduce paper` on three categories."""
    folder = tmp_path_factory.mktemp("reproduced") / "run"
    said = call("reproduce", "paper", *NAMES, *LEVELS, "--out", folder, "--format", "json")
    return json.loads(said.stdout), folder, said


def families_of(folder) -> list:
    """Records by family, categories in unit order, with their files."""
    found = [(path, kept.read(path)) for path in sorted(folder.glob("reproduction/*.safetensors"))]
    return [
        sorted(
            ((p, r) for p, r in found if len(r.readings) == count), key=lambda each: each[1].index
        )
        for count in (112, 4)
    ]


def test_every_reading_is_the_sweep_it_stands_for(reproduced) -> None:
    _, folder, _ = reproduced
    run = open_run(folder)
    base = run.options(screen="off")
    on, inputs = machine(base), read_inputs(base)
    prepared = prepare(inputs, base, on, Silent())
    family = readings("paper", replace(run.options(), out=None))[0]
    wholes, _ = families_of(folder)
    random, seen = np.random.default_rng(7), set()
    for record in (each for _, each in wholes):
        for place in random.permutation(len(family))[:7]:
            reading = record.readings[place]
            own = replace(prepared, options=replace(family[place], screen="off", random_masks=1))
            swept = extract_circuit(own, record.index, record.category).record
            circuit = swept.circuit
            assert reading.levels == tuple(s.levels[s.chosen].level for s in swept.stages)
            assert reading.pruned == pytest.approx(circuit.pruned, abs=1e-12)
            for mine, theirs in (
                (reading.extraction, circuit.extraction),
                (reading.heldout, circuit.heldout),
                (reading.unpruned, swept.unpruned.heldout),
                (reading.unpruned_biased, swept.unpruned.heldout_biased),
                (reading.empty, swept.empty.heldout),
            ):
                assert (mine.hit, mine.false_alarms) == (theirs.hit, theirs.false_alarms)
                assert mine.csa == pytest.approx(theirs.csa, abs=1e-12)
                # the same level run in another batch rounds otherwise
                assert mine.bias == pytest.approx(theirs.bias, abs=1e-4)
            assert reading.as_good == swept.random_masks.as_good
            seen.add(family[place].reference)
    assert seen == {"unpruned-biased", "unpruned", "faithful", "peak"}


def test_screened_readings_choose_the_same_circuits(reproduced) -> None:
    _, folder, _ = reproduced
    base = open_run(folder).options(screen="on")
    on, inputs = machine(base), read_inputs(base)
    prepared = prepare(inputs, base, on, Silent())
    family = readings("paper", replace(open_run(folder).options(), out=None))[0]
    screened = readings("paper", replace(base, out=None))[0]
    record = families_of(folder)[0][1][1]
    work = scored(prepared, record.index, share=True)
    found = read_family(prepared, record.index, screened, work)
    assert [each.levels for each in found.readings] == [each.levels for each in record.readings]
    for mine, theirs in zip(found.readings, record.readings, strict=True):
        assert mine.heldout.hit == theirs.heldout.hit
        assert mine.extraction.hit == theirs.extraction.hit
    # the peak is known only where every level is run on every image
    peak = [reading.reference == "peak" for reading in family]
    assert [each.multiply_adds is None for each in found.readings] == [not p for p in peak]


def test_the_folder_is_a_run_of_the_preset(reproduced) -> None:
    document, folder, _ = reproduced
    again = call("sweep", *NAMES, "--preset", "paper", *LEVELS, "--out", folder, "--format", "json")
    assert "3 of 3" in again.stderr
    swept = json.loads(again.stdout)["summary"]
    preset = document["cells"][0]
    assert preset["preset"]
    assert sum(cell["preset"] for cell in document["cells"]) == 1
    assert preset["pruned"] == pytest.approx(swept["mean_pruned"])
    assert preset["pruned_sd"] == pytest.approx(swept["sd_pruned"])
    assert preset["heldout_csa"] == pytest.approx(swept["mean_heldout_csa"])
    assert preset["heldout_hit"] == pytest.approx(swept["mean_heldout_hit"])
    assert preset["ratio"] == pytest.approx(swept["ratio_of_means_unbiased"])
    assert preset["ratio_biased"] == pytest.approx(swept["ratio_of_means"])
    call("verify", folder)


def test_overlap_is_that_of_the_masks(reproduced) -> None:
    document, folder, _ = reproduced
    stages = open_run(folder).options().stage_names()
    wholes, _ = families_of(folder)
    for place in (0, 17, 60):
        masks = []
        for path, record in wholes:
            levels = dict(zip(stages, record.readings[place].levels, strict=True))
            mine = {}
            for name, shape in families.mask_shapes(path).items():
                stage, t, layer = name.split("/", 2)
                if levels[stage] == int(t):
                    bits = np.unpackbits(families.mask_bits(path, name), count=int(np.prod(shape)))
                    mine[layer] = bits.astype(bool)
            masks.append(mine)
        last = list(masks[0])[
            [m.size for m in masks[0].values()].index(
                min(m.size for name, m in masks[0].items() if name.startswith("classifier"))
            )
        ]  # one row: the smallest of the classifier
        values = []
        for i, one in enumerate(masks):
            for other in masks[i + 1 :]:
                both = sum(int((one[n] & other[n]).sum()) for n in one if n != last)
                kept_one, kept_other = (sum(int(m.sum()) for m in c.values()) for c in (one, other))
                values.append(both / (kept_one + kept_other - both))
        shared = document["cells"][place]["overlap"]
        assert shared["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert (shared["min"], shared["max"]) == pytest.approx((min(values), max(values)))


def test_what_readings_share_is_run_once(reproduced) -> None:
    document, _, _ = reproduced
    costs = [family["fpe"] + family["fpe_floor"] for family in document["families"]]
    assert document["fpe"] == pytest.approx(sum(costs))
    assert document["fpe"] < document["fpe_alone"] / 4


def test_the_grid_costs_little_more_than_its_most_expensive_family(tmp_path) -> None:
    arguments = ["reproduce", "paper", "Sandal", "--out", tmp_path / "run", "--format", "json"]
    document = json.loads(call(*arguments).stdout)
    costs = [family["fpe"] + family["fpe_floor"] for family in document["families"]]
    assert max(costs) < document["fpe"] <= 1.5 * max(costs)


def test_a_family_that_is_missing_or_damaged_is_made_anew(reproduced) -> None:
    _, folder, _ = reproduced
    files = sorted(folder.glob("reproduction/*.safetensors"))
    before = {path: kept.read(path) for path in files}
    times = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    content = bytearray(files[1].read_bytes())
    content[-3] ^= 4
    files[1].write_bytes(content)
    assert kept.read(files[1]) is None
    assert files[1].name in call("verify", folder, code=3).stdout
    said = call("reproduce", "paper", *NAMES, *LEVELS, "--out", folder).stderr
    assert f"quarantine/{files[1].name}.1" in said
    for path in files:
        after = kept.read(path)
        assert after.readings == before[path].readings
        changed = path.stat().st_mtime_ns != times[path]
        assert changed == (path in files[:2])


def test_the_page_has_the_published_figures_and_every_reading(reproduced) -> None:
    document, folder, _ = reproduced
    text = (folder / "reproduction.html").read_text(encoding="utf-8")
    for figure in PUBLISHED["paper"]:
        assert f"{100 * figure.value:.1f} %" in text
    assert text.count("<tr><td>0.9 *</td>") >= 3
    assert "not the published network and images" in text
    assert "unpruned network" in text
    assert "empty circuit" in text
    assert text.count("<td>position") >= 112
    assert not re.findall(r"(?:src|href)=\"(?!#)", text)  # nothing is loaded


def test_the_page_says_what_is_not_the_texts(reproduced) -> None:
    _, folder, _ = reproduced
    found = kept_document(folder)
    assert found.beside == {"levels": LEVELS[1]}
    assert f"levels {LEVELS[1]}." in page(found) and "to 0, as far" in page(found)
    averaged = page(found.model_copy(update={"beside": {"ablate": "mean"}}))
    assert "ablate mean" in averaged and "to 0, as far" not in averaged


def test_a_page_where_no_reading_has_a_circuit() -> None:
    """The unpruned network knows none of the categories: nothing is run, all is NA."""
    none = Read.model_validate(
        {**made_up([0.5], [0.5], [0.5])[0].model_dump(), "undefined": "no hits", "heldout": None}
    )
    cells = [
        summarised(named(each), place == 0, [none, none], 1, None, [], 0)[0]
        for place, each in enumerate(readings("vss", Options(**PRESETS["vss"]))[0])
    ]
    cost = FamilyCost(magnitude="position", readings=1, fpe=0, fpe_floor=0, seconds=0)
    found = Reproduction(
        which="vss", model="m", images="i", on_imagenet=False, categories=2, relevant_weights=9,
        published=[vars(figure) for figure in PUBLISHED["vss"]], cells=cells, families=[cost],
        fpe=0, fpe_alone=0, folder="",
    )  # fmt: skip
    assert "times the most expensive" not in page(found)


def test_the_table_fits_a_terminal(reproduced) -> None:
    _, folder, _ = reproduced
    said = call("reproduce", "paper", *NAMES, *LEVELS, "--out", folder).stdout
    lines = said.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    assert sum("0.9*" in line for line in lines) == 1


def test_an_axis_of_the_grid_cannot_be_given() -> None:
    assert (
        "no option --threshold" in call("reproduce", "paper", "--threshold", "0.8", code=2).stderr
    )
    with pytest.raises(UsageError, match="bias is what the readings of vss vary"):
        circuitcore.reproduce("vss", bias="exact")
    for name in ("fc_threshold", "conv_threshold"):
        with pytest.raises(UsageError, match=f"{name} is what the readings of paper vary"):
            circuitcore.reproduce("paper", **{name: 0.5})
    with pytest.raises(UsageError, match="one process"):
        circuitcore.reproduce("paper", workers=2)
    assert "one of paper, vss" in call("reproduce", "peper", code=2).stderr


@pytest.mark.parametrize("which", ["paper", "vss"])
def test_grids_hold_every_choice_once_the_preset_first(which) -> None:
    families = readings(which, Options(**PRESETS[which]))
    every = [tuple(getattr(r, axis) for axis in AXES) for family in families for r in family]
    assert len(every) == len(set(every))
    assert families[0][0] == Options(**PRESETS[which])
    for place, axis in enumerate(AXES):
        assert {reading[place] for reading in every} == set(getattr(OPEN[which], axis))


def made_up(pruned, csa, unpruned):
    """Readings of as many categories, with these values."""

    def accuracy(value):
        return Accuracy(hit=value, false_alarm=0.0, false_alarms=0, csa=value, bias=0.0)

    return [
        Read(unpruned=accuracy(u), unpruned_biased=accuracy(u), empty=accuracy(0.0), pruned=p,
             levels=(1, 1), extraction=accuracy(c), heldout=accuracy(c))
        for p, c, u in zip(pruned, csa, unpruned, strict=True)
    ]  # fmt: skip


def test_distance_is_the_mean_relative_difference() -> None:
    random = np.random.default_rng(0)
    pruned, csa, unpruned = (
        random.uniform(0.2, 0.9, 12),
        random.uniform(0.2, 0.8, 12),
        np.full(12, 0.7),
    )
    figures = [Figure("pruned", "", 0.5), Figure("pruned_sd", "", 0.2), Figure("ratio", "", 0.9),
               Figure("heldout_csa", "", 0.1, compared=False)]  # fmt: skip
    rows = made_up(pruned, csa, unpruned)
    cell, apart = summarised({}, True, rows, 1, None, figures, 0)
    own = [pruned.mean() / 0.5, pruned.std(ddof=1) / 0.2, csa.mean() / 0.7 / 0.9]
    assert cell.distance == pytest.approx(np.mean([abs(each - 1) for each in own]))
    low, high = cell.distance_ci95
    assert low <= cell.distance <= high
    assert np.quantile(apart, 0.5) == pytest.approx(cell.distance, abs=0.1)


def test_intervals_over_categories_cover_the_truth() -> None:
    random, inside = np.random.default_rng(3), 0
    for seed in range(60):
        pruned = random.beta(4, 2, 40)
        cell, _ = summarised({}, True, made_up(pruned, pruned, np.ones(40)), 1, None,
                             [Figure("pruned", "", 0.5)], seed)  # fmt: skip
        low, high = cell.pruned_ci95
        inside += low <= 4 / 6 <= high
    assert 51 <= inside <= 60  # of 60 at 95 %: outside 51..60 with a chance below 1e-3


def test_the_nearest_in_every_draw_is_known() -> None:
    far, near = np.full(10, 0.9), np.full(10, 0.5) + np.linspace(-0.01, 0.01, 10)
    figures = [Figure("pruned", "", 0.5)]
    both = [summarised({}, False, made_up(p, p, np.ones(10)), 1, None, figures, 0)
            for p in (far, near, near)]  # fmt: skip
    cells = with_nearest([cell for cell, _ in both], [apart for _, apart in both])
    assert [cell.nearest for cell in cells] == [0.0, 1.0, 1.0]


def test_of_one_category_nothing_is_nearest_in_no_draw() -> None:
    """There is nothing to draw again: it is not known, and not 0 %."""
    figures = [Figure("pruned", "", 0.5), Figure("ratio", "", 0.9)]
    cell, apart = summarised({}, True, made_up([0.6], [0.5], [0.7]), 1, None, figures, 0)
    assert cell.distance is not None
    assert [each.nearest for each in with_nearest([cell], [apart])] == [None]


def test_undefined_categories_are_counted_and_left_out() -> None:
    rows = made_up([0.4, 0.6], [0.5, 0.5], [1.0, 1.0])
    none = rows[0].model_copy(update={"heldout": None, "levels": (), "pruned": None,
                                      "undefined": "reference not positive"})  # fmt: skip
    cell, _ = summarised({}, True, [*rows, none], 1, None, [Figure("pruned", "", 0.5)], 0)
    assert cell.pruned == pytest.approx(0.5)
    assert cell.undefined == {"reference not positive": 1}
    assert cell.distance == pytest.approx(0)
    assert (
        summarised({}, True, [*rows, *[none] * 3], 1, None, [Figure("pruned", "", 0.5)], 0)[
            0
        ].distance
        is None
    )
    alone, apart = summarised({}, True, [none], 1, None, [Figure("pruned", "", 0.5)], 0)
    assert alone.pruned is None
    assert apart is None


def test_a_file_of_no_circuit_is_read_again(tmp_path) -> None:
    record = kept.FamilyRecord(
        category="a", index=0, readings=[], once=1, work=0, floor=0, seconds=0
    )
    kept.write(tmp_path / "a.safetensors", record, {})
    assert kept.read(tmp_path / "a.safetensors") == record
    kept.write(tmp_path / "b.safetensors", record, {("fc", 1): {"x": torch.ones(3, 5, dtype=bool)}})
    assert families.mask_shapes(tmp_path / "b.safetensors") == {"fc/1/x": [3, 5]}


def test_a_document_that_its_families_do_not_give_is_found(reproduced) -> None:
    from circuitcore.analysis.reproduction import document as module

    _, folder, _ = reproduced
    call("verify", folder)
    found = module.kept(folder)
    assert len(found.units) == len(NAMES)
    cell = found.cells[3].model_copy(update={"pruned": 0.123})
    cells = [*found.cells[:3], cell, *found.cells[4:]]
    module.keep(folder, found.model_copy(update={"cells": cells}))
    assert "reproduction.json: not what its families give" in call("verify", folder, code=3).stdout
    module.keep(folder, found.model_copy(update={"units": [*found.units, 7]}))
    assert "of which 3 are there" in call("verify", folder, code=3).stdout
    module.keep(folder, found)
    call("verify", folder)
