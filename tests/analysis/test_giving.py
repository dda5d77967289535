"""Circuits given away: each file holds the circuit in plain torch, or is refused and not there."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms._presets import ImageClassification

import circuitcore as cc
from circuitcore.analysis.evaluation import prepared_run
from circuitcore.analysis.giving import export as giving
from circuitcore.analysis.giving import sample, speed
from circuitcore.analysis.giving.facts import merged
from circuitcore.analysis.giving.licence import _timms, _torchvisions
from circuitcore.analysis.giving.subject import compact_module, subject_of
from circuitcore.bundled.network import load_bundled
from circuitcore.engine.passes import activations
from circuitcore.errors import CircuitcoreError, InputError
from circuitcore.inputs.read import InHand
from circuitcore.machine.files import read_sealed
from circuitcore.progress import Silent
from circuitcore.runs.folder import open_run

NAME = "0001-Trouser"


@pytest.fixture(scope="module")
def brief():
    """Rounds of a measurement that nobody reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.0)
        patch.setattr(speed, "LEAST_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def given(own_small, brief):
    """A copy of the small run with all files of Trouser's circuit: (folder, what was printed)."""
    said = call("export", own_small.folder, "Trouser", "--onnx")
    also = call("compact", own_small.folder, "Trouser")
    return own_small.folder, said, also


def code_of(card):
    """The Python of a card, by file name."""
    return dict(re.findall(r"^`(\S+)`:\n\n```python\n(.*?)\n```", card, re.S | re.M))


def truth(folder, name, given=None):
    """(held-out images as network input, the engine's activations with the circuit's bias)."""
    run, prepared = prepared_run(folder, Silent(), given)
    unit = run.unit_of(name)
    circuit = cc.open_run(folder)[name]
    own = activations(prepared.runner, prepared.heldout, unit, circuit.masks)
    shown = prepared.runner.batch(prepared.heldout, slice(None)).contiguous()
    return shown, own + (0 if run.of_targets else circuit.bias), prepared


def test_stdout_has_the_files_and_the_card_tells_of_them_all(given):
    folder, said, also = given
    there = folder / "export"
    assert said.stdout.split() == [
        str(there / f"{NAME}{end}") for end in (".safetensors", ".masks.safetensors", ".onnx")
    ]
    assert also.stdout.split()[0] == str(there / f"{NAME}.pt2")
    assert "times" in also.stdout and "compact" in also.stdout.splitlines()[-1]
    facts = read_sealed(there / f"{NAME}.card.json")
    ends = {".safetensors", ".masks.safetensors", ".onnx", ".pt2", ".card.md"}
    assert facts["files"].keys() == {NAME + end for end in ends}
    assert {path.name for path in there.iterdir()} == {NAME + e for e in (*ends, ".card.json")}
    record = cc.open_run(folder)["Trouser"].record.circuit
    for end in (".safetensors", ".onnx", ".pt2"):
        checked = facts["files"][NAME + end]["checked"]
        assert checked["images"] == 300 and checked["largest_difference"] < 1e-4
        assert checked["hits"] == round(record.heldout.hit * 30)
        assert checked["false_alarms"] == record.heldout.false_alarms
    work = facts["speed"]["circuit_multiply_adds"], facts["speed"]["network_multiply_adds"]
    assert 0 < work[0] < work[1]
    card = (there / f"{NAME}.card.md").read_text()
    for must in ("# The circuit of Trouser in bundled", "| empty circuit (floor) |",
                 f"| all | {record.kept_weights:,} |", "MIT, as circuitcore",
                 facts["network"]["weights_sha256"], "`fc_levels` =", "held-out faithfulness",
                 facts["speed"]["device"], "circuitcore compact run 1"):  # fmt: skip
        assert must in card
    assert facts["numbers"]["circuit"]["heldout"]["csa_ratio_biased_ci95"] is not None
    assert str(folder) not in card and str(folder) not in json.dumps(facts)


def test_the_code_of_the_card_runs_and_every_file_gives_the_runs_activations(given, monkeypatch):
    folder, _, _ = given
    code = code_of((folder / "export" / f"{NAME}.card.md").read_text())
    assert len(code) == 4
    shown, want, _ = truth(folder, "Trouser")
    monkeypatch.chdir(folder / "export")
    for name, text in code.items():
        zeros = re.search(r"images = (\w+)\.zeros", text)
        if zeros is None:
            assert name.endswith("masks.safetensors")
            exec(text, {})
            continue
        scope = {}
        exec(text, scope)
        assert tuple(scope["activation"].shape) == (2,)
        scope = {"held_out": shown if zeros[1] == "torch" else shown.numpy()}
        exec(re.sub(r"images = .*", "images = held_out", text), scope)
        found = torch.as_tensor(np.asarray(scope["activation"]))
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_a_program_needs_nothing_of_circuitcore(given):
    folder, _, _ = given
    code = code_of((folder / "export" / f"{NAME}.card.md").read_text())[f"{NAME}.pt2"]
    code = f"import sys\nsys.modules['circuitcore'] = None\n{code}\nprint('ran')"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code], cwd=folder / "export", text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "ran\n", done.stderr


def test_the_module_is_the_circuit(given):
    folder, _, _ = given
    shown, want, prepared = truth(folder, "Trouser")
    circuit = cc.open_run(folder)["Trouser"]
    module = circuit.compact()
    assert isinstance(module, torch.nn.Module) and not module.training
    with torch.no_grad():
        torch.testing.assert_close(module(shown), want, rtol=1e-5, atol=1e-5)
        larger = torch.randn(2, 1, 29, 28)
        own = circuit.apply(load_bundled()[0].double())
        torch.testing.assert_close(own(shown.double())[:, 1].float(), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="do not fit"):
        circuit.compact(size=(40, 40))
    with pytest.raises(ValueError, match="images are"):
        module(larger)
    assert module.multiply_adds < prepared.runner.sizes.multiply_adds_of_one


def test_other_formats_say_the_same(given):
    folder, _, _ = given
    one = json.loads(call("export", folder, "Bag", "--format", "json", "--quiet").stdout)
    assert Path(one["state"]).exists() and Path(one["facts"]).name == "0008-Bag.card.json"
    assert one["onnx"] is None and one["checked"]["0008-Bag.safetensors"]["images"] == 300
    two = json.loads(call("compact", folder, "Bag", "--no-timing", "--format", "json").stdout)
    assert two["speed"] is None and two["checked"]["hits"] == 30
    files = read_sealed(Path(two["facts"]))["files"]
    assert "0008-Bag.safetensors" in files and "0008-Bag.pt2" in files
    assert "speed" not in read_sealed(Path(two["facts"]))


def test_what_is_not_the_circuit_is_refused_and_not_left_behind(given, monkeypatch, tmp_path):
    folder, _, _ = given
    run = open_run(folder)
    good = (folder / "export" / f"{NAME}.pt2").read_bytes()
    other = compact_module(subject_of(run, 8, InHand()), (1, 28, 28))
    monkeypatch.setattr(giving, "compact_module", lambda *_, **__: other)
    said = call("compact", folder, "Trouser", "--no-timing", code=1).stderr
    assert "other activations than the run's circuit" in said and "allowed" in said
    assert (folder / "export" / f"{NAME}.pt2").read_bytes() == good
    call("compact", folder, "Trouser", "--no-timing", "--out", tmp_path / "t.pt2", code=1)
    assert not list(tmp_path.iterdir())
    kept = giving.pruned_state

    def nearly(*given):
        state, masks = kept(*given)
        state["classifier.6.bias"][1] += 0.1
        return state, masks

    monkeypatch.setattr(giving, "pruned_state", nearly)
    call("export", folder, "Trouser", "--out", tmp_path / "t.safetensors", code=1)
    assert not list(tmp_path.iterdir())


def test_counts_are_those_of_the_record_but_for_what_lies_on_the_edge(given, monkeypatch):
    folder, _, _ = given
    subject = subject_of(open_run(folder), 1, InHand())
    found = sample.sample_of(subject, Silent())
    assert found.check("it", found.values + subject.bias, subject.bias).hits == 27
    with pytest.raises(CircuitcoreError, match="other activations"):
        found.check("it", found.values + subject.bias + torch.nan, subject.bias)
    monkeypatch.setattr(sample, "BOUND", 1e9)  # of activations alone: any are taken
    alike = found.check("it", found.values + subject.bias, subject.bias)
    tight = alike.model_copy(update={"allowed": 1e-6})
    with pytest.raises(CircuitcoreError, match=r"0 hits and 0 false alarms .* record 27 and 0"):
        found._counted("it", found.values.double() - 50, tight)


def test_without_the_runs_images_files_are_tried_on_noise(given, monkeypatch, tmp_path):
    folder, _, _ = given

    def gone(options):
        raise InputError("--images: no such folder")

    monkeypatch.setattr(sample, "images_of", gone)
    said = call("export", folder, "Bag", "--out", tmp_path / "b.safetensors").stderr
    assert "tried on noise, not on the run's images: --images: no such folder" in said
    checked = read_sealed(tmp_path / "b.card.json")["files"]["b.safetensors"]["checked"]
    assert checked["of"].startswith("8 images made up") and "hits" not in checked
    assert cc.open_run(folder)["Bag"].compact().shape == (1, 28, 28)


def test_the_extra_is_named_where_it_is_not_installed(given, monkeypatch):
    folder, _, _ = given
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else found(n, *a)
    )
    said = call("export", folder, "Trouser", "--onnx", code=2).stderr
    assert "onnxruntime" in said and "pip install 'circuitcore[onnx]'" in said


def test_verify_knows_the_files_and_no_others(given, tmp_path):
    folder = shutil.copytree(given[0], tmp_path / "run")
    there = folder / "export"
    (there / "mine.safetensors").write_bytes(b"no circuit")
    (there / "mine.json").write_text("{")
    assert cc.open_run(folder).verify(sample=0) == []
    program = there / f"{NAME}.pt2"
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.write_bytes(content)
    (wrong,) = cc.open_run(folder).verify(sample=0)
    assert f"{NAME}.pt2" in wrong and "sha256" in wrong
    # what is gone or another's is not in the next card
    facts = read_sealed(there / f"{NAME}.card.json")
    again = merged(facts, there / f"{NAME}.card.json", {})
    assert f"{NAME}.pt2" not in again["files"] and f"{NAME}.onnx" in again["files"]
    assert merged({**facts, "key": "other"}, there / f"{NAME}.card.json", {})["files"] == {}


def test_means_that_pruned_weights_carry_are_in_every_file(small, tmp_path, brief):
    folder = tmp_path / "run"
    call("sweep", "Bag", *small.levels, "--ablate", "mean", "--out", folder)
    call("export", folder, "Bag", "--onnx")
    call("compact", folder, "Bag", "--no-timing")
    shown, want, _ = truth(folder, "Bag")
    program = torch.export.load(folder / "export" / "0008-Bag.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(shown), want, rtol=1e-5, atol=1e-5)
    facts = read_sealed(folder / "export" / "0008-Bag.card.json")
    hit = cc.open_run(folder)["Bag"].record.circuit.heldout.hit
    assert 0 < facts["files"]["0008-Bag.onnx"]["checked"]["hits"] == round(30 * hit)
    card = (folder / "export" / "0008-Bag.card.md").read_text()
    assert "which alone do not give the circuit's activations" in card


def test_of_another_target_every_file_has_its_value(tmp_path):
    folder = tmp_path / "run"
    call("sweep", "--target", "features.3:4", "--levels", "0,0.3,0.6", "--extraction-images", "60",
         "--heldout-images", "40", "--out", folder)  # fmt: skip
    paths = call("export", folder, "features.3:4", "--onnx").stdout.split()
    call("compact", folder, "features.3:4", "--no-timing")
    facts = read_sealed(folder / "export" / "0004-features_3_4.card.json")
    value = cc.open_run(folder)["features.3:4"].record.circuit.heldout
    checked = [each["checked"] for each in facts["files"].values() if each.get("checked")]
    assert len(checked) == 3 and len(paths) == 3
    assert all(each["judged"] == pytest.approx(value, abs=1e-4) for each in checked)
    assert facts["bias"] is None and facts["target"] == "features.3:4"
    card = (folder / "export" / "0004-features_3_4.card.md").read_text()
    assert "has the circuit's value" in card and "(correlation)" in card
    assert "circuit's bias" not in card.partition("## Loading")[2]
    shown, want, _ = truth(folder, "features.3:4")
    with torch.no_grad():
        found = cc.open_run(folder)["features.3:4"].compact()(shown)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


class Residual(torch.nn.Module):
    """Two convolutions, batch norms, a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two = torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(8)
        self.last = torch.nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.one(self.a(x)))
        return self.last(torch.relu(x + self.two(self.b(x))).mean((2, 3)))


def test_a_circuit_of_a_network_in_hand(tmp_path, monkeypatch):
    """The code of the card wants the user's own class; the model has to be in hand again."""
    random = np.random.default_rng(0)
    for part, count in (("train", 1), ("val", 6)):
        for name in ("dark", "light"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (40, 44, 3), dtype=np.uint8)
                pixels += 130 * (name == "light")
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{number}.png")
    torch.manual_seed(0)
    module = Residual().eval()
    transform = ImageClassification(crop_size=32, resize_size=36)
    model = cc.Model.of(module, transform, ["dark", "light"])
    run = cc.sweep(
        model, tmp_path / "images", categories="light", out=tmp_path / "run", fc_levels="0,0.3",
        conv_levels="0,0.05", scoring_images=1, extraction_images=3, heldout_images=3,
        labels="as-given", device="cpu", threshold=0.01, reference="unpruned",
    )  # fmt: skip
    circuit = run["light"]
    found = circuit.export()
    assert found.checked["0001-light.safetensors"].images == 6
    written = circuit.write_compact(timed=False)
    assert written.checked.images == 6 and written.speed is None
    code = code_of(found.card.read_text())
    monkeypatch.chdir(found.card.parent)
    exec(code["0001-light.pt2"], {})
    scope = {"make_network": Residual}
    exec(code["0001-light.safetensors"], scope)
    assert scope["activation"].shape == (2,)
    with pytest.raises(InputError, match="in hand"):
        cc.open_run(run.folder)["light"].compact()
    assert load_file(found[1]).keys() == {f"{name}.weight" for name in circuit.masks}


def test_licences_are_those_stated_or_unknown():
    assert _torchvisions("tv:alexnet@IMAGENET1K_V1").startswith("unknown: torchvision states none")
    assert "SWAG" in _torchvisions("tv:regnet_y_16gf@IMAGENET1K_SWAG_LINEAR_V1")
    assert _timms("no_such_network").startswith("unknown: timm states none")


@pytest.mark.parametrize("verb", ["export", "compact", "show"])
def test_what_is_no_file_to_write_is_left_alone(verb, small, tmp_path):
    import os
    import stat

    from command import call

    quick = ["--no-timing"] if verb == "compact" else []
    pipe, manifest = tmp_path / "pipe.svg", small.folder / "manifest.json"
    os.mkfifo(pipe)
    said = call(verb, small.folder, "Bag", *quick, "--out", pipe, code=3).stderr
    assert "not a file" in said and stat.S_ISFIFO(pipe.stat().st_mode)
    before = manifest.read_bytes()
    said = call(verb, small.folder, "Bag", *quick, "--out", manifest, code=3).stderr
    assert "a file of the run itself" in said and manifest.read_bytes() == before
    (tmp_path / "file").touch()
    said = call(verb, small.folder, "Bag", *quick, "--out", tmp_path / "file/x.svg", code=3).stderr
    assert f"{tmp_path / 'file'} is no folder" in said
    call(verb, small.folder, "Bag", *quick, "--out", tmp_path, code=3)
