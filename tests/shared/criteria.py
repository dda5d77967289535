"""A criterion's scores and sweep of one category of the example, against the float64 method's."""

import numpy as np
import torch

from circuitcore.engine.prepare import prepare
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.levels.layer import raw_scores
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import layer_scores

GRIDS = {"fc": (0.0, 0.5, 0.9, 0.99), "conv": (0.0, 0.5, 0.9)}
CROSSED = 1e-4  # fraction of the weights that rounding may move across a level
CLOSE = 2e-5  # relative to the layer's highest score: float32 products, summed over positions


def scoring_images(example, category):
    """The example's float64 scoring images of one category."""
    every, labels = example.splits["scoring"]
    return every[labels == category]


def scores_agree(network, images, unit, options, expected):
    """Raw scores of every layer as float64 ``expected`` has them."""
    found = scored_by(network, images.float(), unit, options)
    assert list(expected) == network.layers()
    for layer, long_way in expected.items():
        product = layer_scores(network, layer, found[layer], unit, options)
        values = raw_scores(product.layer).double()
        assert values.shape == long_way.reshape(-1).shape, layer
        worst = (values - long_way.reshape(-1)).abs().max() / long_way.abs().max()
        assert worst <= CLOSE, f"{layer}: {worst:.1e}"


def apart(masks, other):
    """Fraction of the weights that stand in one circuit and not in the other."""
    return np.concatenate([(masks[k] ^ other[k]).reshape(-1).numpy() for k in other]).mean()


def sweep_agrees(example, method, unit, expected, *, normalised="paper", **changes):
    """Levels, choices and masks of a whole sweep as the method's with the scores ``expected``.

    ``normalised``: how these are before they are ranked; ``changes``: of the product's options.
    """
    grids = {f"{s}_levels": ",".join(map(str, grid)) for s, grid in GRIDS.items()}
    options = Options(screen="off", **grids, **changes)
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    product = extract_circuit(prepared, unit, example.categories[unit])
    reference = method.extract(
        example.double,
        example.splits,
        unit,
        whole=True,
        scores=expected,
        normalise=normalised,
        **GRIDS,
    )
    with prepared.runner.products(precise=True):
        found = scored_by(prepared.runner.network, prepared.scoring_images(unit), unit, options)
    for stage, curve in zip(GRIDS, product.record.stages, strict=True):
        assigned = stage_levels(prepared.runner.network, stage, found, unit, options)
        assert curve.chosen == reference[stage]["chosen"]
        for t, other in enumerate(reference[stage]["curve"]):
            level = curve.levels[t]
            assert apart(assigned.kept(t), other["masks"]) <= CROSSED
            assert level.kept_weights == sum(int(mask.sum()) for mask in other["masks"].values())
            assert abs(level.hit - other["at"].hits / other["at"].targets) < 1e-9
    masks = reference["masks"]
    assert apart(product.kept, masks) <= CROSSED
    assert 0 < torch.cat([mask.reshape(-1) for mask in masks.values()]).double().mean() < 1
