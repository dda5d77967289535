"""Circuits of units, channels and directions against plain torch in float64.

What may differ is rounding alone: see `test_against_reference`.  Agreement is a smooth function of
the activations, so curves are compared as numbers.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.agreement import extract_target
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import options_of
from circuitcore.progress import Silent

GRID = [0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95]
THRESHOLD = 0.6
CROSSED = 1e-4  # fraction of a stage's weights that rounding may move across one level
CURVE = 2e-4  # what one weight on the other side of a level, and float32, may change of a value
CASES = [
    ("features.8:12", "max", "correlation"),  # a channel before its ReLU
    ("features.9:12", "mean", "spearman"),  # and behind it
    ("features.3:5", "centre", "error"),
    ("classifier.1:3", "max", "spearman"),  # a unit: two stages
    ("classifier.5:100", "max", "correlation"),
    ("features.7:FILE", "mean", "correlation"),
    ("classifier.2:FILE", "max", "error"),
]


def direction_of(end):
    channels = {"features.7": 64, "classifier.2": 768}[end]
    return np.random.default_rng(5).normal(size=channels)


def aim_of(targets, text, pool):
    end, _, which = text.partition(":")
    if which == "FILE":
        return targets.Aim(end, direction=torch.from_numpy(direction_of(end)), pool=pool)
    return targets.Aim(end, unit=int(which), pool=pool)


def load(files):
    """The reference's own way from a file to the network's input: float64 [N, 1, H, W]."""
    _, _, own = load_bundled()
    pixels = [np.array(Image.open(Path(IMAGES) / f.path).convert("L")) for f in files]
    images = torch.from_numpy(np.stack(pixels)).double()[:, None] / 255
    return (images - own.mean[0]) / own.std[0]


@pytest.mark.parametrize(
    ("text", "pool", "judge", "ablate"),
    [*((*case, "zero") for case in CASES), *((*CASES[k], "mean") for k in (0, 3))],
)
def test_curve_and_circuit_agree(text, pool, judge, ablate, example, tmp_path):
    import targets

    aim = aim_of(targets, text, pool)
    if aim.direction is not None:
        np.save(tmp_path / "d.npy", aim.direction.numpy())
        text = f"{aim.end}:{tmp_path / 'd.npy'}"
    options = options_of({
        "target": text, "judge": judge, "levels": GRID, "threshold": THRESHOLD,
        "extraction_images": 40, "heldout_images": 30, "ablate": ablate,
        **({} if pool == "max" else {"pool_target": pool}),
    })  # fmt: skip
    inputs = read_inputs(options)
    prepared = prepare(inputs, options, machine(options), Silent())
    (category,) = inputs.categories
    product = extract_target(prepared, category.index, category.name)

    splits = {name: load(inputs.split(name)) for name in ("scoring", "extraction", "heldout")}
    splits["pool"] = splits.pop("scoring")
    means = targets.mean_inputs(example.double, splits["pool"], aim) if ablate == "mean" else None
    reference = targets.extract(example.double, splits, aim, GRID, judge, THRESHOLD, means=means)
    names = [file.path for file in inputs.split("scoring")]
    scored = dict(zip(names, splits["pool"], strict=True))
    assert torch.equal(
        torch.stack([scored[name] for name in product.record.scoring_images]), reference["images"]
    )
    assert [stage.stage for stage in product.record.stages] == list(reference["stages"])
    for stage in product.record.stages:
        expected = reference["stages"][stage.stage]
        assert stage.chosen == expected["chosen"]
        for level, there in zip(stage.levels, expected["curve"], strict=True):
            assert level.kept_weights == sum(int(m.sum()) for m in there["masks"].values())
            assert level.value == pytest.approx(there["value"], abs=CURVE)
    assert set(product.kept) == set(reference["masks"])
    apart = [(product.kept[k] ^ m).reshape(-1) for k, m in reference["masks"].items()]
    assert torch.cat(apart).double().mean() <= CROSSED
    circuit, last = product.record.circuit, product.record.stages[-1]
    assert circuit.extraction == last.levels[last.chosen].value
    assert circuit.heldout == pytest.approx(reference["heldout"], abs=CURVE)
    low, high = circuit.heldout_ci95
    assert low <= circuit.heldout <= high
    assert 0 < circuit.pruned < 1
    random = product.record.random_masks.extraction
    assert random is None or random < circuit.extraction
