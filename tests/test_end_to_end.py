"""The main job as a user runs it: its document, its folder, going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pyarrow.parquet
import pytest
import torch
import torch.nn.utils.prune
from command import call, masks

COMMAND = str(Path(sys.executable).parent / "circuitcore")


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    """The installed command in a process of its own."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert code in (0, 1) or "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The command of the README on the bundled example: (document, run folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command("sweep", "--format", "json", "--out", folder)
    return json.loads(done.stdout), folder


def test_document_validates_and_is_whole(whole) -> None:
    document, _ = whole
    schema = json.loads((files("circuitcore") / "schemas" / "sweep.json").read_text())
    jsonschema.validate(document, schema)
    assert len(document["categories"]) == 10
    for category in document["categories"]:
        assert [s["stage"] for s in category["stages"]] == ["fc", "conv"]
        for stage in category["stages"]:
            assert len(stage["levels"]) == 32
            assert stage["levels"][0]["pruned"] == 0
            assert all(level["images"] == 200 for level in stage["levels"])
            chosen = stage["levels"][stage["chosen"]]
            own = category["unpruned"]["extraction_biased"]["hit"]
            assert stage["reference_hits"] == own
            assert stage["threshold_hits"] == pytest.approx(0.9 * own)
            assert chosen["hit"] >= stage["threshold_hits"] - 1e-9
            most = category["unpruned"]["extraction"]["false_alarms"]
            assert all(level["false_alarms"] <= most for level in stage["levels"])
        circuit = category["circuit"]
        assert 0 < circuit["pruned"] < 1
        low, high = circuit["heldout"]["csa_ratio_ci95"]
        assert low <= circuit["heldout"]["csa_ratio"] <= high
        low, high = circuit["heldout"]["csa_ratio_biased_ci95"]
        assert low <= circuit["heldout"]["csa_ratio_biased"] <= high
        faithful = category["faithfulness"]
        assert faithful["heldout_ci95"][0] <= faithful["heldout"] <= faithful["heldout_ci95"][1]
        assert category["empty"]["extraction"]["false_alarms"] <= most
        cost = category["cost"]
        assert cost["fpe"] == pytest.approx(cost["fpe_sweep"] + cost["fpe_heldout"])
        assert category["cost"]["fpe"] > 1
    overlap = document["overlap"]
    assert overlap["pairs"] == 45
    assert 0 < overlap["mean_chance"] < overlap["mean"] < 1, "categories share more than chance"


def test_circuits_are_worth_having(whole) -> None:
    """On new images the circuits do most of what the network does with a part of its weights."""
    summary = whole[0]["summary"]
    assert summary["undefined"] == {}
    assert summary["mean_pruned"] > 0.3
    assert summary["ratio_of_means"] > 0.7
    assert summary["mean_heldout_hit"] > 0.6


def test_run_folder_holds_what_it_promises(whole) -> None:
    document, folder = whole
    for category in document["categories"]:
        assert (folder / category["circuit"]["file"]).exists()
    assert pyarrow.parquet.read_table(folder / "curves.parquet").num_rows == 10 * 64
    assert pyarrow.parquet.read_table(folder / "images.parquet").num_rows == 10 * 54
    pairs = pyarrow.parquet.read_table(folder / "overlap.parquet")
    assert pairs.num_rows == 45 * 9  # eight layers and the whole network
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 4 and "http://" not in page.replace("http://www.w3.org", "")
    call("verify", folder)


def test_last_layer_shares_nothing(whole) -> None:
    rows = pyarrow.parquet.read_table(whole[1] / "overlap.parquet").to_pylist()
    last = [row for row in rows if row["layer"] == "classifier.6"]
    assert len(last) == 45
    assert all(row["intersection"] == 0 and row["union"] > 0 for row in last)


def test_another_configuration_is_refused_naming_the_keys(small) -> None:
    done = command(
        "sweep", "Trouser", *small.levels, "--threshold", "0.5", "--out", small.folder, code=3
    )
    assert "fc_threshold" in done.stderr and "0.9" in done.stderr and "0.5" in done.stderr


def test_killed_and_run_again_gives_the_same_circuits(small, tmp_path) -> None:
    folder = tmp_path / "run"
    arguments = [*small.arguments, "--out", str(folder)]
    for _ in range(2):
        process = subprocess.Popen(
            [COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        done = len(list(folder.glob("units/*/*.safetensors")))
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("units/*/*.safetensors"))) > done:
                break  # killed right after a commit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    call(*arguments)
    call("verify", folder)
    expected, found = masks(small.folder), masks(folder)
    assert expected.keys() == found.keys()
    assert all((expected[k] == found[k]).all() for k in expected)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_sweep_cleanly(tmp_path, number, code) -> None:
    folder = tmp_path / "run"
    arguments = [COMMAND, "sweep", "--levels", "200", "--out", str(folder)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code
    assert "Traceback" not in error
    assert len(list(folder.glob("units/*/*.safetensors"))) < 10


def test_export_gives_the_activations_back_in_plain_torch(small, tmp_path) -> None:
    from safetensors.torch import load_file

    from circuitcore.analysis.evaluation import prepared_run
    from circuitcore.bundled.network import SmallAlexNet
    from circuitcore.engine.passes import activations
    from circuitcore.extraction.judging import judges
    from circuitcore.progress import Silent
    from circuitcore.runs.circuitfile import read_circuit

    path, mask_path = call(
        "export", small.folder, "Trouser", "--out", tmp_path / "t.safetensors"
    ).stdout.split()
    module = SmallAlexNet().eval()
    module.load_state_dict(load_file(path))
    opened, prepared = prepared_run(small.folder, Silent())
    images = prepared.runner.batch(prepared.heldout, slice(None))
    with torch.inference_mode():
        exported = module(images)[:, 1]
    stored = read_circuit(opened.circuit_path(opened.unit_of("Trouser")))
    assert stored.record.circuit is not None
    own = activations(prepared.runner, prepared.heldout, 1, stored.kept)
    bias = stored.record.circuit.bias
    torch.testing.assert_close(exported, own + bias, rtol=1e-4, atol=1e-4)
    judge = judges(prepared, 1)[1]
    assert judge.at(own, bias).csa == stored.record.circuit.heldout.csa
    whole = SmallAlexNet().eval()
    whole.load_state_dict(
        {f"{k}.weight": v for k, v in prepared.runner.network.weights.items()}
        | {f"{k}.bias": v for k, v in prepared.runner.network.biases.items()}
    )
    pruned = load_file(mask_path)
    for name, module_ in whole.named_modules():
        if f"{name}.weight" in pruned:
            torch.nn.utils.prune.custom_from_mask(module_, "weight", pruned[f"{name}.weight"])
    with torch.inference_mode():
        torch.testing.assert_close(whole(images)[:, 1], own, rtol=1e-4, atol=1e-4)


def test_no_top_level_kernels_package() -> None:
    code = "import circuitcore.kernels, sys; sys.exit('kernels' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=env, cwd="/").returncode == 0
