"""Levels chosen anew from stored curves: against circuits extracted anew, and loops over images."""

from itertools import combinations

import numpy as np
import pytest
from command import call
from made_up import category
from redrawn import redrawn

import circuitcore as cc
from circuitcore.analysis.resampling import choice
from circuitcore.analysis.resampling.choice import choices, mean_overlap, nested_draws
from circuitcore.options import Options

NAMES = ("Dress", "Bag")
LEVELS = {"fc_levels": "0,0.5,0.9,0.98,0.995,0.999,0.9999", "conv_levels": "0,0.3,0.6,0.9"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two circuits of curves that cross their threshold."""
    folder = tmp_path_factory.mktemp("choice") / "run"
    return cc.sweep(categories=list(NAMES), out=folder, device="cpu", **LEVELS)


def jaccard(one, other):
    return (one & other).sum() / (one | other).sum()


def test_a_lower_threshold_keeps_what_extracting_anew_keeps(run, tmp_path, monkeypatch):
    """The first stage's masks, from `extract RUN --threshold`, at thresholds far enough to move."""
    monkeypatch.setattr(choice, "STEP", 0.4)
    again = run.extract(threshold=0.5, out=tmp_path / "lower")
    rows = {(r["category"], r["stage"]): r for r in run.choices()}
    moved = 0
    for name in NAMES:
        own, lower = run[name], again[name]
        layers = [layer for layer in own.masks if layer.startswith("classifier")]
        one, other = (
            np.concatenate([c.masks[layer].numpy().ravel() for layer in layers])
            for c in (own, lower)
        )
        row = rows[name, "fc"]
        assert (row["lower"], row["higher"]) == (0.5, 1.0)
        assert (row["kept"], row["kept_lower"]) == (one.sum(), other.sum())
        assert not (other & ~one).any()  # nested
        three = [row[key] for key in ("kept_lower", "kept", "kept_higher")]
        pairs = [min(a, b) / max(a, b) for a, b in combinations(three, 2)]
        assert row["threshold_ceiling"] == pytest.approx(np.mean(pairs))
        assert pairs[0] == pytest.approx(jaccard(one, other))
        moved += row["kept"] != row["kept_lower"]
        whole = rows[name, ""]
        assert whole["kept"] == own.record.circuit.kept_weights == row["kept"] + (
            rows[name, "conv"]["kept"]
        )  # fmt: skip
        sums = [row[key] + rows[name, "conv"][key] for key in ("kept_lower", "kept", "kept_higher")]
        assert [whole[key] for key in ("kept_lower", "kept", "kept_higher")] == sums
    assert moved


def drawn_by_loops(record, targets, draws, seed):
    """Kept weights of both stages in each draw of the target images, hits taken as nested."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        images = random.integers(0, targets, targets)  # places in order of how often they are hit
        kept = []
        for stage in record.stages:
            full = sum(i < round(record.unpruned.extraction_biased.hit * targets) for i in images)
            chosen = 0
            for place, level in enumerate(stage.levels):
                if sum(i < round(level.hit * targets) for i in images) < 0.9 * full - 1e-9:
                    break
                chosen = place
            kept.append(stage.levels[chosen].kept_weights)
        found.append(kept)
    return np.array(found)


def test_extraction_images_drawn_again(run):
    rows = {(r["category"], r["stage"]): r for r in run.choices()}
    below = 0
    for name in NAMES:
        record = run[name].record
        drawn = drawn_by_loops(record, 20, 1500, 3)
        own = [stage.levels[stage.chosen].kept_weights for stage in record.stages]
        some = np.random.default_rng(1).integers(0, len(drawn), (6000, 2))
        some = some[some[:, 0] != some[:, 1]]
        for stage, columns in (("", [0, 1]), ("fc", [0]), ("conv", [1])):
            one, other = drawn[some[:, 0]][:, columns], drawn[some[:, 1]][:, columns]
            overlap = np.minimum(one, other).sum(1) / np.maximum(one, other).sum(1)
            row = rows[name, stage]
            assert row["extraction_ceiling"] == pytest.approx(overlap.mean(), abs=0.05)
            moved = (drawn[:, columns] != np.array(own)[columns]).any(1).mean()
            assert row["moved"] == pytest.approx(moved, abs=0.08)
            below += row["extraction_ceiling"] < 0.95
    assert below


def test_nested_hits_are_no_lower_a_ceiling_than_drawing_images(run):
    """Every level run on every image, every bias fitted anew on each of 150 draws."""
    found = redrawn(run.folder, 150)
    rows = {r["category"]: r["extraction_ceiling"] for r in run.choices() if not r["stage"]}
    for name in NAMES:
        own = [stage.levels[stage.chosen].kept_weights for stage in run[name].record.stages]
        assert (found[name] == np.array(own)[:, None]).all(0).any()  # some draws choose the circuit
        drawn = mean_overlap(found[name])
        assert 0.3 < drawn < rows[name] + 0.04
    assert np.mean([mean_overlap(found[name]) for name in NAMES]) < np.mean(list(rows.values()))


def made(random, of_targets, of_others, norm):
    """A record of one stage whose levels fall off unevenly, as (hits, false alarms) counts."""
    levels = 9
    hits = np.sort(random.integers(1, of_targets + 1, levels))[::-1]
    hits[3:5] = hits[3:5][::-1]  # not monotone
    false = random.integers(0, 4, levels)
    cost = of_targets if norm == "target" else of_others

    def accuracy(h, f):
        return {
            "hit": h / of_targets, "false_alarms": int(f), "false_alarm": f / of_others,
            "csa": h / of_targets - f / cost,
        }  # fmt: skip

    base = category(1, "a")
    stage = base.stages[0]
    curve = [
        each.model_copy(update={**accuracy(h, f), "images": of_targets + of_others, "level": place,
                                "kept_weights": 1000 >> place, "csa_lo": 0.0, "csa_hi": 0.0})
        for place, (each, h, f) in enumerate(zip(stage.levels, hits, false, strict=False))
    ]  # fmt: skip
    ends = [of_targets - 1, 1], [2, 0]
    whole, empty = (
        base.empty.extraction.model_copy(update=accuracy(h, f)) for h, f in zip(*ends, strict=True)
    )
    unpruned = {"extraction": whole, "extraction_biased": whole}
    record = base.model_copy(
        update={
            "unpruned": base.unpruned.model_copy(update=unpruned),
            "empty": base.empty.model_copy(update={"extraction": empty}),
            "stages": [stage.model_copy(update={"levels": curve, "chosen": 2})],
        }
    )
    return record, [*zip(hits, false, strict=True), (ends[0][0], 2), (ends[0][1], 0)], cost


@pytest.mark.parametrize(
    "asked",
    [
        {"bias": "exact"},
        {"bias": "exact", "false_alarm_norm": "target", "stop": "sparsest-above"},
        {"reference": "faithful", "stop": "sparsest-above"},
        {"reference": "peak", "stop": "sparsest-above", "bias": "none"},
        {"reference": "unpruned"},
    ],
)
def test_every_judgement_is_drawn_as_loops_draw_it(asked):
    targets, others, random = 20, 60, np.random.default_rng(4)
    options = Options(fc_levels="linear:9", conv_levels="linear:9", **asked)
    record, counts, cost = made(random, targets, others, options.false_alarm_norm)
    chosen = []
    for _ in range(3000):
        one, two = random.integers(0, targets, targets), random.integers(0, others, others)
        values = []
        for hits, false in counts:
            value = (one < hits).sum() / targets
            values.append(
                value if options.bias == "matched" else value - (two < false).sum() / cost
            )
        *curve, whole, empty = values
        full = max(curve) if options.reference == "peak" else whole
        floor = empty if options.reference == "faithful" else 0.0
        if full <= floor:
            continue
        above = [v >= floor + 0.9 * (full - floor) - 1e-9 for v in curve]
        if options.stop == "sparsest-above":
            place = max((i for i, ok in enumerate(above) if ok), default=0)
        else:
            place = max(next((i for i, ok in enumerate(above) if not ok), len(above)) - 1, 0)
        chosen.append(1000 >> place)
    run = {"images": {"extraction": 80}, "categories": [1, 2, 3, 4]}
    row = choices(record, options, run)[1]
    assert row.extraction_ceiling == pytest.approx(mean_overlap(np.array([chosen])), abs=0.05)
    assert row.moved == pytest.approx(np.mean(np.array(chosen) != 250), abs=0.08)


def test_draws_are_binomial_and_nested():
    counts = [3, 11, 11, 20, 0]
    drawn = nested_draws(counts, 20, [1, 2])
    assert drawn[:, 0].mean() == pytest.approx(3, abs=0.3)
    assert drawn[:, 1].var() == pytest.approx(20 * 0.55 * 0.45, rel=0.25)
    assert (drawn[:, 0] <= drawn[:, 1]).all() and np.array_equal(drawn[:, 1], drawn[:, 2])
    assert (drawn[:, 3] == 20).all() and not drawn[:, 4].any()


def test_mean_overlap_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    kept = random.integers(0, 4, (2, 25)) * random.integers(0, 2, 25)
    wanted = []
    for a, b in combinations(kept.T, 2):
        if a.sum() or b.sum():
            wanted.append(np.minimum(a, b).sum() / np.maximum(a, b).sum())
    assert mean_overlap(kept) == pytest.approx(np.mean(wanted))
    assert mean_overlap(np.zeros((2, 3), int)) is None
    assert mean_overlap(np.array([[5, 5, 5]])) == 1.0


def test_a_curve_that_ends_early_does_not_tell(run):
    """Levels that were not run: only what a crossing in front of them decides is known."""
    record, options, manifest = run["Dress"].record, run.manifest["options"], run.manifest
    options = Options(**{k: options[k] for k in ("fc_levels", "conv_levels", "levels")})
    whole = choices(record, options, manifest)
    fc = record.stages[0]
    below = next(i for i, level in enumerate(fc.levels) if level.hit < fc.threshold_hits - 1e-9)
    cut = fc.model_copy(update={"levels": fc.levels[: below + 1]})
    short = record.model_copy(update={"stages": [cut, record.stages[1]]})
    found = {row.stage: row for row in choices(short, options, manifest)}
    assert found["fc"].extraction_ceiling is None is found[""].extraction_ceiling
    conv = {row.stage: row for row in whole}["conv"]
    same = {"extraction_ceiling": None, "moved": None}  # drawn between other counts
    assert found["conv"].model_copy(update=same) == conv.model_copy(update=same)
    assert found["conv"].extraction_ceiling == pytest.approx(conv.extraction_ceiling, abs=0.05)
    wanted = {row.stage: row for row in whole}["fc"]
    sure = fc.levels[below].hit < fc.reference_hits * (options.threshold - choice.STEP)
    assert found["fc"].kept_lower == (wanted.kept_lower if sure else None)
    shorter = fc.model_copy(update={"levels": fc.levels[:below]})
    shorter = record.model_copy(update={"stages": [shorter, record.stages[1]]})
    assert choices(shorter, options, manifest)[1].kept_lower is None
    level = fc.levels[below].model_copy(update={"hit_lo": 0.0, "hit_hi": 1.0})
    open_levels = [*fc.levels[:below], level, *fc.levels[below + 1 :]]
    vague = record.model_copy(
        update={"stages": [fc.model_copy(update={"levels": open_levels}), record.stages[1]]}
    )
    assert choices(vague, options, manifest)[1].threshold_ceiling is None
    none = record.model_copy(update={"circuit": None})
    assert choices(none, options, manifest) == []


def test_another_seed_changes_no_circuit_but_of_random_scores(tmp_path, run):
    """What `--seed` draws is in no circuit, unless the scores are random: then chance is left."""
    same = cc.sweep(categories="Bag", out=tmp_path / "same", seed=5, device="cpu", **LEVELS)["Bag"]
    assert all((same.masks[layer] == mask).all() for layer, mask in run["Bag"].masks.items())
    few = {"fc_levels": "0,0.5", "conv_levels": "0,0.1", "threshold": 0.3, "device": "cpu"}
    one, other = (
        cc.sweep(categories="Bag", out=tmp_path / str(s), seed=s, criterion="random", **few)["Bag"]
        for s in (1, 2)
    )
    layers = [layer for layer in one.masks if layer.startswith("classifier")]
    kept = [np.concatenate([c.masks[n].numpy().ravel() for n in layers]) for c in (one, other)]
    assert kept[0].mean() == pytest.approx(0.5, abs=0.01)
    assert jaccard(*kept) == pytest.approx(1 / 3, abs=0.01)  # 1/4 of all over 3/4 of all
    said = call("stability", run.folder, "Bag", "--resamples", 2, "--pool", 6).stdout
    assert "--seed draws nothing that is in a circuit" in said
