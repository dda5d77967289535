"""The product against the float64 reference of the whole method, every category of the example.

What may differ is rounding alone.  The product scores and runs in float32, so a weight may change
sides of a level only where its float64 score stands within rounding of the level's threshold; such
weights are counted, and from there on float64 follows the product's masks: two weights of equal
score do not carry the same activation.  Activations agree to 1e-4 of the unpruned one's spread.
"""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded import recorded

from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

EPS = torch.finfo(torch.float32).eps
ULPS = 4 * EPS  # of a score and of what its factors may be off by, see `method.rounding`
CROSSED = 1e-4  # fraction of a stage's weights that rounding may move across one level
ACTIVATION = 1e-4  # of the unpruned activation's standard deviation
CATEGORIES = range(10)


@pytest.fixture(scope="module")
def prepared():
    options = Options()
    return prepare(read_inputs(options), options, machine(options), Silent())


@pytest.fixture(scope="module")
def both(example, method, prepared):
    """What product and reference make of one category, computed once each."""
    done = {}

    def of(category):
        if category not in done:
            done.clear()  # a category's curves hold 64 masks: keep one category
            reference = method.extract(example.double, example.splits, category, whole=True)
            product, rows = recorded(prepared, category, example.categories[category])
            rows = dict(zip(("fc", "conv"), rows, strict=True))
            done[category] = SimpleNamespace(reference=reference, product=product, rows=rows)
        return done[category]

    return of


def crossed(masks, other):
    """Which weights stand in one mask and not in the other, row-major over the layers."""
    return np.concatenate([(masks[k] ^ other[k]).reshape(-1).numpy() for k in other])


@pytest.fixture(scope="module")
def rounding(example, method):
    """`method.rounding` on the scoring images of a category, the last one's kept."""

    @lru_cache(1)
    def of(category):
        images, labels = example.splits["scoring"]
        return method.rounding(example.double, images[labels == category], category)

    return of


def rounding_of(bounds, example, method, reference, stage):
    """By how much float32 may move the normalised score of each weight of a stage."""
    parts = []
    for layer in method.layers(example.double, stage):
        scores = reference["scores"][layer]
        span = scores.max() - scores.min() if stage == "fc" else 1.0
        parts.append(ULPS * (bounds[layer] + scores.abs()).reshape(-1) / span)
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_agrees(category, both, rounding, example, method, prepared):
    reference, product, rows = vars(both(category)).values()
    record = product.record
    same_circuit = not crossed(product.kept, reference["masks"]).any()
    outcomes = (
        (reference["unpruned"], record.unpruned.extraction),
        (reference["biased"], record.unpruned.extraction_biased),
        (reference["heldout_unpruned"], record.unpruned.heldout),
        (reference["heldout_biased"], record.unpruned.heldout_biased),
        (reference["extraction"], record.circuit.extraction),
        (reference["heldout"], record.circuit.heldout),
    )
    for expected, found in outcomes:
        assert found.hit == expected.hits / expected.targets
        assert found.false_alarms == expected.false_alarms
        assert found.false_alarm == expected.false_alarms / expected.others
        assert found.csa == pytest.approx(expected.csa, abs=1e-12)
        if same_circuit or expected is reference["unpruned"] or expected is reference["biased"]:
            assert found.bias == pytest.approx(expected.bias, abs=1e-4)
    heldout = record.circuit.heldout
    assert heldout.csa_ratio == pytest.approx(reference["csa_ratio"])
    assert heldout.csa_ratio_biased == pytest.approx(reference["csa_ratio_biased"])
    low, high = heldout.csa_ratio_ci95
    assert low <= heldout.csa_ratio <= high

    found = contributions(prepared.runner.network, prepared.scoring_images(category), category)
    images, labels = example.splits["extraction"]
    same_fixed = True
    with torch.no_grad():
        spread = method.run(example.double, images)[:, category].std()
    fixed = {}
    for stage, curve in zip(("fc", "conv"), record.stages, strict=True):
        expected = reference[stage]
        assigned = stage_levels(prepared.runner.network, stage, found, category, prepared.options)
        assert curve.stage == stage and len(curve.levels) == len(expected["curve"]) == 32
        assert curve.chosen == expected["chosen"]
        ranking = expected["ranking"]
        zero = np.concatenate([reference["scores"][k].reshape(-1) for k in ranking.layers]) == 0
        assert curve.tied_zero == assigned.tied_zero == pytest.approx(zero.mean(), abs=CROSSED)
        for t, level in enumerate(expected["curve"]):
            masks = assigned.kept(t)
            assert assigned.pruned[t] == level["units"]
            assert curve.levels[t].kept_weights == assigned.relevant - level["units"]
            apart = crossed(masks, level["masks"])
            assert apart.mean() <= CROSSED
            activation, at = level["activation"], level["at"]
            if apart.any():
                threshold = ranking.keys[ranking.order[level["units"] - 1]]
                bounds = rounding_of(rounding(category), example, method, reference, stage)
                bound = bounds[apart].max()
                assert np.all(np.abs(ranking.keys[apart] - threshold) <= bound)
            if apart.any() or not same_fixed:
                activation = method.activations(
                    example.double, images, category, {**fixed, **masks}
                )
                most = reference["unpruned"].false_alarms
                margin, target = reference["margin"], labels == category
                at = method.best_bias(activation, margin, target, "other", most)
                assert at.hits == level["at"].hits
            if t > 0:  # level 0 is the unpruned network, or the circuit the stage began with
                row = rows[stage][t - 1].double()
                assert (row - activation).abs().max() <= ACTIVATION * spread
            assert curve.levels[t].csa == pytest.approx(at.csa, abs=1e-12)
            bias, slack = curve.levels[t].bias, ACTIVATION * float(spread)
            assert curve.levels[t].hit == at.hits / at.targets
            assert (at.hits == 0 and bias <= 0) or any(
                low - slack < bias <= high + slack for low, high in at.intervals
            )
        fixed |= assigned.kept(curve.chosen)
        same_fixed = not crossed(fixed, expected["curve"][expected["chosen"]]["masks"]).any()
    assert set(product.kept) == set(reference["masks"])
    for layer, mask in product.kept.items():
        assert torch.equal(mask, fixed[layer])


@pytest.mark.parametrize(
    "changes",
    [
        {"stop": "sparsest-above", "threshold": 0.85, "bias": "none"},
        {"magnitude": "signed", "reference": "unpruned", "false_alarm_norm": "predicted"},
        {"bias": "exact", "false_alarm_norm": "target"},
        {"granularity": "kernel", "spatial": "mean"},
        {"granularity": "filter", "magnitude": "image", "normalise": "l1"},
        {"magnitude": "set", "normalise": "minmax", "ties": "snap"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_options_agree(changes, example, method):
    """Other readings of the paper, on a coarse grid and one category."""
    category, grid = 5, [0.0, 0.3, 0.6, 0.8, 0.9, 0.97]
    options = Options(levels=",".join(map(str, grid)), **changes)
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    own = dict(changes)
    if "false_alarm_norm" in own:
        own["norm"] = own.pop("false_alarm_norm")
    reference = method.extract(
        example.double, example.splits, category, fc=grid, conv=grid, whole=True, **own
    )
    product = extract_circuit(prepared, category, example.categories[category])
    for stage, curve in zip(("fc", "conv"), product.record.stages, strict=True):
        assert curve.chosen == reference[stage]["chosen"]
        for level, expected in zip(curve.levels, reference[stage]["curve"], strict=True):
            kept = sum(int(mask.sum()) for mask in expected["masks"].values())
            assert level.kept_weights == kept
            assert level.csa == pytest.approx(expected["at"].csa, abs=1e-12)
            assert level.false_alarms == expected["at"].false_alarms
    apart = crossed(product.kept, reference["masks"])
    assert apart.mean() <= CROSSED
    assert product.record.circuit.heldout.csa == pytest.approx(reference["heldout"].csa, abs=1e-12)


def test_overlap_agrees(method):
    """Jaccard and its chance level against counts and densities written out."""
    from circuitcore.analysis.overlap import LayerOverlap, jaccard
    from circuitcore.kernels.overlap.operation import overlap_counts

    generator = torch.Generator().manual_seed(0)
    shapes = {"features.0": (7, 3, 3, 3), "classifier.1": (20, 11), "classifier.3": (1, 20)}
    density = {"features.0": (0.9, 0.5, 0.2), "classifier.1": (0.1, 0.3, 0.6)}
    circuits = [
        {
            layer: torch.rand(shape, generator=generator) < density.get(layer, (0.4,) * 3)[i]
            for layer, shape in shapes.items()
        }
        for i in range(3)
    ]
    layers = {}
    for layer in shapes:
        bits = np.stack([np.packbits(c[layer].numpy().reshape(-1)) for c in circuits])
        shared, kept = (t.numpy() for t in overlap_counts(torch.from_numpy(bits)))
        last = layer == "classifier.3"
        shared = np.diag(np.diag(shared)) if last else shared
        layers[layer] = LayerOverlap(shared, kept, circuits[0][layer].numel(), last)
    overlap, chance = jaccard(layers)
    for i in range(3):
        for j in range(i):
            shared, united = method.jaccard(circuits[i], circuits[j], "classifier.3")
            assert overlap[i, j] == pytest.approx(shared / united)
            expected = method.chance(circuits[i], circuits[j], "classifier.3")
            assert chance[i, j] == pytest.approx(expected)
