"""Stages other than the two of an AlexNet, held against the method in float64: the same curves.

A head of 1 x 1 convolutions, three stages, one alone, and layers that are left whole.
"""

from functools import partial

import pytest
import torch
from headed import convolutional, trained
from torch import nn

import circuitcore
from circuitcore.errors import UsageError

GRID = [0.0, 0.25, 0.5, 0.75, 0.9]
THREE = {"head": ["7"], "hidden": ["5"], "conv": ["0", "2"]}


def classifying(outputs=10):
    """Two convolutions and two Linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, outputs),
    )  # fmt: skip


def said(stages):
    return ";".join(f"{name}={','.join(layers)}" for name, layers in stages.items())


CASES = {
    "a head of 1 x 1 convolutions": (convolutional, None, ()),
    "a head, all in one stage": (convolutional, {"all": ["0", "2", "5", "8"]}, ()),
    "a head, its last layer first": (
        convolutional, {"last": ["8"], "late": ["2", "5"]}, ("0",),
    ),
    "three stages": (classifying, THREE, ()),
    "three stages, one layer whole": (classifying, THREE, ("2",)),
    "the hidden layer whole": (classifying, None, ("5",)),
    "convolutions first": (classifying, {"conv": ["0", "2"], "rest": ["5", "7"]}, ()),
}  # fmt: skip


@pytest.fixture(scope="module")
def double(method):
    return lambda make: method.double(trained(make)[0])


@pytest.mark.parametrize("case", list(CASES))
def test_the_curves_are_those_of_the_reference(case, example, method, double, tmp_path):
    make, stages, skip = CASES[case]
    category = "Trouser"
    unit = example.categories.index(category)
    network = double(make)
    asked = {"stages": said(stages)} if stages else {}
    run = circuitcore.sweep(
        trained(make)[1], "bundled", categories=[category], out=tmp_path / "run", skip=skip,
        levels=GRID, random_masks=0, device="cpu", dtype="float32", **asked,
    )  # fmt: skip
    record, masks = run[category].record, run[category].masks
    stages = stages or method.default_stages(network)
    stages = {name: [n for n in names if n not in skip] for name, names in stages.items()}
    expected = method.extract(
        network, example.splits, unit, stages=stages, whole=True, **dict.fromkeys(stages, GRID)
    )
    assert [stage.stage for stage in record.stages] == [name for name in stages if stages[name]]
    for stage in record.stages:
        own = expected[stage.stage]
        assert stage.chosen == own["chosen"]
        assert stage.relevant_weights == own["ranking"].reached[-1]
        for level, wanted in zip(stage.levels, own["curve"], strict=True):
            assert level.kept_weights == stage.relevant_weights - wanted["units"]
            assert level.hit == wanted["at"].hits / wanted["at"].targets
            assert level.false_alarms == wanted["at"].false_alarms
            assert level.bias == pytest.approx(wanted["at"].bias, abs=1e-3)
        assert stage.planned_multiply_adds == stage.multiply_adds
    circuit = record.circuit
    assert circuit.heldout.hit == expected["heldout"].hits / expected["heldout"].targets
    assert circuit.heldout.false_alarms == expected["heldout"].false_alarms
    assert set(masks) == set(expected["masks"]) and list(circuit.skipped) == list(skip)
    for name, mask in masks.items():
        assert torch.equal(mask, expected["masks"][name])
    total = sum(mask.numel() for mask in masks.values())
    assert circuit.pruned == pytest.approx(1 - sum(int(m.sum()) for m in masks.values()) / total)
    kept = {s: sum(int(masks[n].sum()) for n in names) for s, names in stages.items()}
    pruned = {s: 1 - kept[s] / sum(masks[n].numel() for n in stages[s]) for s in stages}
    if set(stages) == {"fc", "conv"}:
        assert circuit.pruned_by_stage is None
        assert (circuit.pruned_fc, circuit.pruned_conv) == pytest.approx(tuple(pruned.values()))
    else:
        assert circuit.pruned_fc is None and circuit.pruned_by_stage == pytest.approx(pruned)


def test_a_circuit_behind_a_rectifier_is_applied_with_its_bias(example, tmp_path):
    """No bias of the convolution does what the circuit's does behind its rectifier."""
    module, model = trained()
    run = circuitcore.sweep(
        model, "bundled", categories=["Bag"], out=tmp_path / "run", levels=GRID, random_masks=0,
        device="cpu", dtype="float32", threshold=0.7,
    )  # fmt: skip
    circuit, (images, labels) = run["Bag"], example.splits["heldout"]
    heldout = circuit.record.circuit.heldout
    assert circuit.bias != 0
    with torch.no_grad():
        rest = module(images.float()).index_fill(1, torch.tensor(circuit.unit), -torch.inf)
        pruned = circuit.apply(module)(images.float())
        with circuit.applied(module) as inside:
            assert torch.equal(inside(images.float()), pruned)
    said = pruned[:, circuit.unit] > rest.max(1).values
    assert said[labels == circuit.unit].double().mean() == pytest.approx(heldout.hit)
    assert int(said[labels != circuit.unit].sum()) == heldout.false_alarms
    assert not module._forward_hooks


REFUSED = {
    "a layer in no stage": ({"stages": "a=7;b=0,2"}, "layer '5' is in no stage"),
    "a layer in two stages": ({"stages": "a=7,5;b=*"}, "layer '5' is in a and in b"),
    "no such layer": ({"stages": "a=7;b=feature*"}, "no layer 'feature"),
    "nothing to skip": ({"skip": "9"}, "--skip: no layer '9'"),
    "nothing left": ({"skip": "*"}, "no layer is left"),
    "a stage all skipped": ({"stages": "a=7;b=*", "skip": "7"}, "a has no layer left"),
    "an option of a default stage": (
        {"stages": "a=*", "fc_levels": "5"}, "--fc-levels belongs to the default stages",
    ),
    "a stage twice": ({"stages": "a=7;a=5"}, "named twice"),
    "no name": ({"stages": "=7"}, "NAME=LAYER"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_stages_that_do_not_fit_are_refused(what, tmp_path):
    options, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        circuitcore.sweep(trained(classifying)[1], "bundled", out=tmp_path / "run", **options)


def test_runs_of_other_stages_go_through_every_command(tmp_path):
    run = circuitcore.sweep(
        trained(classifying)[1], "bundled", categories=["Trouser", "Bag"], out=tmp_path / "run",
        levels=GRID, stages=said(THREE), skip="2", device="cpu", dtype="float32",
    )  # fmt: skip
    columns = run.table()[0]
    assert {"pruned_head", "pruned_hidden", "pruned_conv"} <= set(columns)
    assert "pruned_fc" not in columns
    stages = list(dict.fromkeys(row["stage"] for row in run.curves()))
    assert stages == list(THREE)
    layers = {row["layer"] for row in run.overlap()}
    assert layers == {"", "0", "5", "7"}
    kept = {row["category"]: row["kept_weights"] for row in run.controls(device="cpu")
            if row["control"] == "random"}  # fmt: skip
    assert kept == {name: run[name].record.circuit.kept_weights for name in run}
    again = run.extract(threshold=0.5, out=tmp_path / "again")
    for name, circuit in again.items():
        looser = circuit.record.circuit.pruned_by_stage
        assert looser["head"] >= run[name].record.circuit.pruned_by_stage["head"]
    page = run.report().read_text()
    assert "<th>hidden</th>" in page
    asked = partial(circuitcore.plan, trained(classifying)[1], "bundled", categories=["Bag"])
    planned = asked(levels=GRID, stages=said(THREE), skip="2", exact=True, screen="off")
    swept = [stage.multiply_adds for stage in run["Bag"].record.stages]
    assert [stage.multiply_adds for stage in planned.exact[0].stages] == swept
