"""A sweep under ``--ablate mean`` and what follows it, against the float64 method.

Two categories of the bundled example at a few levels: every level's activations, the levels chosen,
the circuit in plain torch, lesions, other images; and that runs to zero know nothing of it.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from command import call
from recorded import recorded
from safetensors.torch import load_file

import circuitcore
from circuitcore.analysis.controls import controls
from circuitcore.analysis.evaluation import evaluate, prepared_run
from circuitcore.analysis.lesions import lesioned_logits
from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import SmallAlexNet
from circuitcore.engine.passes import activations
from circuitcore.errors import InputError
from circuitcore.extraction.judging import empty_activation
from circuitcore.jobs.job import worker
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import read_circuit
from circuitcore.runs.folder import open_run
from circuitcore.runs.means import MEANS

GRID = (0.0, 0.5, 0.9, 0.97, 0.99, 0.999)
UNITS = {"Trouser": 1, "Bag": 8}


@pytest.fixture(scope="module")
def means(example, method):
    """Over the scoring images of all ten categories, float64."""
    return method.mean_inputs(example.double, example.splits["scoring"][0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "run"
    return circuitcore.sweep(
        categories=list(UNITS), levels=",".join(map(str, GRID)), ablate="mean", device="cpu",
        out=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(run):
    return prepared_run(run.folder, Silent())[1]


@pytest.fixture(scope="module")
def images(example):
    return {name: images for name, (images, _) in example.splits.items()}


@pytest.mark.parametrize("name", UNITS)
def test_every_level_and_the_choice_are_the_methods(name, run, prepared, example, method, means):
    unit = UNITS[name]
    wanted = method.extract(
        example.double, example.splits, unit, fc=GRID, conv=GRID, whole=True, means=means
    )
    product, rows = recorded(prepared, unit, name)
    images, _ = example.splits["extraction"]
    with torch.no_grad():
        spread = method.run(example.double, images)[:, unit].std()
    fixed = {}
    for stage, curve, found in zip(("fc", "conv"), product.record.stages, rows, strict=True):
        reference = wanted[stage]
        assert curve.chosen == reference["chosen"]
        for t, level in enumerate(reference["curve"]):
            assert curve.levels[t].hit == level["at"].hits / level["at"].targets
            assert curve.levels[t].false_alarms == level["at"].false_alarms
            if t:
                assert (found[t - 1].double() - level["activation"]).abs().max() <= 1e-4 * spread
        fixed |= reference["curve"][reference["chosen"]]["masks"]
    assert all(torch.equal(mask, fixed[layer]) for layer, mask in product.kept.items())
    assert all(torch.equal(mask, product.kept[n]) for n, mask in run[name].masks.items())
    heldout = run[name].record.circuit.heldout
    assert heldout.csa == pytest.approx(wanted["heldout"].csa, abs=1e-12)
    assert heldout.false_alarms == wanted["heldout"].false_alarms


def test_the_means_are_those_of_all_categories(run, prepared, means):
    found = load_file(run.folder / MEANS)
    assert found.keys() == means.keys()
    for name, mean in means.items():
        torch.testing.assert_close(found[name].flatten().double(), mean, rtol=1e-5, atol=1e-6)
    network = prepared.runner.network
    assert all(torch.equal(network.means.inputs[name], mean) for name, mean in found.items())


def test_the_empty_circuit_is_what_all_pruned_weights_carry(run, prepared, images, method, example,
                                                            means):  # fmt: skip
    network = prepared.runner.network
    nothing = {
        n: torch.zeros(network.relevant_shape(n), dtype=torch.bool) for n in network.layers()
    }
    own = activations(prepared.runner, prepared.heldout, 8, nothing)
    want = method.activations(example.double, images["heldout"], 8, nothing, means=means)
    empty = empty_activation(prepared.inputs.model.network, 8, prepared.heldout)
    torch.testing.assert_close(own.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(empty.double(), want, rtol=1e-5, atol=1e-5)
    assert (empty - network.biases[network.last][8]).abs().min() > 0.1  # not that of zeros


def test_exported_and_applied_it_gives_its_activations(run, prepared, images, method, example,
                                                      means, tmp_path):  # fmt: skip
    circuit = run["Bag"]
    want = method.activations(example.double, images["heldout"], 8, circuit.masks, means=means)
    shown = prepared.runner.batch(prepared.heldout, slice(None))
    file, _ = circuit.export(tmp_path / "bag.safetensors")
    module = SmallAlexNet().eval()
    module.load_state_dict(load_file(file))
    whole = {n: t.clone() for n, t in example.network.state_dict().items()}
    with torch.inference_mode():
        for pruned in (module, circuit.apply(example.network)):
            found = pruned(shown)[:, 8].double() - circuit.bias
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        others = [unit for unit in range(10) if unit != 8]
        assert not torch.equal(module(shown)[:, others], example.network(shown)[:, others])
    with circuit.applied(example.network) as there, torch.no_grad():
        torch.testing.assert_close(there(shown)[:, 8], module(shown)[:, 8], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(t, whole[n]) for n, t in example.network.state_dict().items())


def test_a_lesion_leaves_what_the_cut_weights_carry(run, prepared, images, method, example, means):
    kept = run["Bag"].masks
    found = lesioned_logits(prepared.runner, prepared.heldout, 8, kept)
    every = {}
    for name, mask in kept.items():
        whole = torch.ones(example.network.get_submodule(name).weight.shape, dtype=torch.bool)
        rows = slice(8, 9) if name == method.last_layer(example.double) else slice(None)
        whole[rows] = ~mask
        every[name] = whole
    with torch.no_grad():
        want = method.run(example.double, images["heldout"], every, means=means)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)


def test_other_images_are_judged_with_the_runs_own_means(run, tmp_path):
    """The same images to judge on, others that score: of no consequence."""
    other = tmp_path / "other"
    shutil.copytree(IMAGES, other)
    for category in (other / "train").iterdir():
        for file in sorted(category.iterdir())[:4]:
            file.unlink()
    rows, own = (
        {row.category: row for row in evaluate(run.folder, where, Silent())}
        for where in (str(other), None)
    )
    for name in UNITS:
        assert rows[name].circuit == own[name].circuit
        assert rows[name].empty == own[name].empty
        assert own[name].circuit.hit == run[name].record.circuit.heldout.hit
    for row in controls(run.folder, Silent()):
        if row.control in ("circuit", "empty"):
            found = getattr(own[row.category], row.control)
            assert (row.heldout.hit, row.heldout.false_alarms) == (found.hit, found.false_alarms)


def test_damaged_or_missing_means_are_said_to_be_so(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    opened = circuitcore.open_run(folder)
    assert opened.verify() == []
    assert opened.evaluate()  # the random masks' biases are known, whichever test came before
    file = folder / MEANS
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + bytes(3))
    assert len(opened.verify()) == 1 and MEANS in opened.verify()[0]
    with pytest.raises(InputError, match="damaged; delete it"):
        opened["Bag"].apply(SmallAlexNet())
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        opened.evaluate(str(IMAGES))
    assert opened.evaluate()  # of its own images: made again
    made, kept = load_file(file), load_file(run.folder / MEANS)
    assert all(torch.equal(made[name], mean) for name, mean in kept.items())


def test_means_that_a_finished_run_has_lost_are_missed_and_made_again(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    file, wanted = folder / MEANS, load_file(run.folder / MEANS)

    def made_again():
        made = load_file(file)
        return all(torch.equal(made[name], mean) for name, mean in wanted.items())

    file.unlink()
    assert "missing" in call("verify", folder, "--sample", 0, code=3).stdout
    call("verify", folder, "--repair", "--quiet")
    assert made_again()
    file.write_bytes(file.read_bytes()[:-1])  # set aside by a sweep with no category left to do
    levels = ",".join(map(str, GRID))
    call("sweep", *UNITS, "--levels", levels, "--ablate", "mean", "--out", folder, "--quiet")
    assert made_again()
    assert call("verify", folder, "--sample", 0).stdout == "intact: 2 circuits\n"
    call("export", folder, "Bag", "--out", tmp_path / "bag.safetensors")
    file = tmp_path / "other" / MEANS
    for _ in range(2):  # steps of a run do too
        call("extract", folder, "Bag", "--threshold", 0.5, "--out", file.parent, "--quiet")
        assert made_again()
        file.unlink()


def test_who_goes_on_with_a_run_takes_the_means_that_are_there(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    opened = open_run(folder)
    path, wanted = opened.path(UNITS["Bag"]), run["Bag"].masks
    path.unlink()
    monkeypatch.setattr("circuitcore.engine.prepare.mean_inputs", None)  # is not called
    assert worker(folder, 0, 1, Silent(), ["Bag"]) == 1
    found = read_circuit(path)
    assert all(torch.equal(mask, wanted[name]) for name, mask in found.kept.items())
    assert found.record.circuit.heldout == run["Bag"].record.circuit.heldout


def test_a_run_to_zero_has_the_key_it_had(small):
    assert "ablate" not in Options().method()
    assert Options(ablate="mean").method() == {**Options().method(), "ablate": "mean"}
    assert not (small.folder / MEANS).exists()
    plan = [
        json.loads(call("plan", "--ablate", how, "--format", "json").stdout)
        for how in ("zero", "mean")
    ]
    zero, mean = (SimpleNamespace(**each) for each in plan)
    assert mean.shared_fpe == zero.shared_fpe + 40 / 200 and mean.fpe == zero.fpe
    (step,) = [step for step in mean.steps if step not in zero.steps]
    assert step["what"] == "mean inputs (shared)" and step["fpe"] == 40 / 200
