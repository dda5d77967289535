"""The main job as a user runs it: its document, its folder, going on after a kill."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.utils.prune

COMMAND = str(Path(sys.executable).parent / "circuitcore")
FEW = ["--fc-levels", "0,0.5,0.9,0.99", "--conv-levels", "0,0.5,0.9"]


def run(*arguments: object, code: int = 0, **settings) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=900, **settings
    )
    assert done.returncode == code, done.stderr[-3000:]
    if code not in (0, 1):
        assert "Traceback" not in done.stderr
    return done


def masks(folder: Path) -> dict[str, np.ndarray]:
    from circuitcore.circuitfile import packed_masks, read_record
    from circuitcore.store import open_run

    return {
        f"{read_record(path)[1].category}/{layer}": bits
        for path in open_run(folder).units().values()
        for layer, bits in packed_masks(path).items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The command of the README on the bundled example: (document, run folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = run("sweep", "--format", "json", "--out", folder)
    return json.loads(done.stdout), folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two categories at a few levels: (document, run folder)."""
    folder = tmp_path_factory.mktemp("small") / "run"
    arguments = ["sweep", "Trouser", "Bag", *FEW, "--format", "json", "--out", folder]
    return json.loads(run(*arguments).stdout), folder


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
            assert chosen["csa"] >= 0.9 * category["unpruned"]["extraction_biased"]["csa"] - 1e-9
        circuit = category["circuit"]
        assert 0 < circuit["pruned"] < 1
        low, high = circuit["heldout"]["csa_ratio_ci95"]
        assert low <= circuit["heldout"]["csa_ratio"] <= high
        assert category["cost"]["fpe"] > 1
    overlap = document["overlap"]
    assert overlap["pairs"] == 45
    assert 0 < overlap["mean_chance"] < overlap["mean"] < 1, "categories share more than chance"


def test_circuits_are_worth_having(whole) -> None:
    """On new images the circuits do most of what the network does with a part of its weights."""
    summary = whole[0]["summary"]
    assert summary["undefined"] == 0
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
    assert run("verify", folder).returncode == 0


def test_last_layer_shares_nothing(whole) -> None:
    rows = pyarrow.parquet.read_table(whole[1] / "overlap.parquet").to_pylist()
    last = [row for row in rows if row["layer"] == "classifier.6"]
    assert len(last) == 45
    assert all(row["intersection"] == 0 and row["union"] > 0 for row in last)


def test_rerun_computes_nothing(small) -> None:
    document, folder = small
    before = {p: p.stat().st_mtime_ns for p in folder.glob("units/*/*")}
    again = run("sweep", "Trouser", "Bag", *FEW, "--format", "json", "--out", folder)
    assert json.loads(again.stdout) == document
    assert {p: p.stat().st_mtime_ns for p in folder.glob("units/*/*")} == before
    assert "2 of 2" in again.stderr


def test_another_configuration_is_refused_naming_the_keys(small) -> None:
    done = run("sweep", "Trouser", *FEW, "--threshold", "0.5", "--out", small[1], code=3)
    assert "fc_threshold" in done.stderr and "0.9" in done.stderr and "0.5" in done.stderr


def test_a_flipped_bit_is_found_and_mended(small, tmp_path) -> None:
    folder = shutil.copytree(small[1], tmp_path / "run")
    before = masks(folder)
    victim = sorted(folder.glob("units/*/*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    assert "sha256" in run("verify", folder, code=3).stdout
    run("sweep", "Trouser", "Bag", *FEW, "--out", folder)
    run("verify", folder)
    after = masks(folder)
    assert before.keys() == after.keys()
    assert all((before[k] == after[k]).all() for k in before)


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_circuits(small, tmp_path) -> None:
    folder = tmp_path / "run"
    arguments = [COMMAND, "sweep", "Trouser", "Bag", *FEW, "--out", str(folder)]
    for _ in range(2):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done = len(list(folder.glob("units/*/*.safetensors")))
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("units/*/*.safetensors"))) > done:
                break  # killed right after a commit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not [p for p in folder.glob("units/*/*") if p.suffix == ".part"]
    run(*arguments[1:])
    run("verify", folder)
    expected, found = masks(small[1]), masks(folder)
    assert all((expected[k] == found[k]).all() for k in expected)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_sweep_cleanly(tmp_path, number, code) -> None:
    folder = tmp_path / "run"
    arguments = [COMMAND, "sweep", "Trouser", "--levels", "200", "--out", str(folder)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code
    assert "Traceback" not in error
    assert not list(folder.glob("units/*/*.safetensors"))


def test_export_gives_the_activations_back_in_plain_torch(small, tmp_path) -> None:
    from safetensors.torch import load_file

    from circuitcore.bundled.network import SmallAlexNet
    from circuitcore.circuit import judges
    from circuitcore.circuitfile import read_circuit
    from circuitcore.progress import Silent
    from circuitcore.run import prepared_run
    from circuitcore.sweep import activations, circuit_override

    path, mask_path = run(
        "export", small[1], "Trouser", "--out", tmp_path / "t.safetensors"
    ).stdout.split()
    module = SmallAlexNet().eval()
    module.load_state_dict(load_file(path))
    opened, prepared = prepared_run(small[1], Silent())
    images = prepared.batch(prepared.heldout, slice(None))
    with torch.inference_mode():
        exported = module(images)[:, 1]
    stored = read_circuit(opened.circuit_path("Trouser"))
    assert stored.record.circuit is not None
    own = activations(prepared, prepared.heldout, circuit_override(prepared, 1, stored.kept))[0]
    bias = stored.record.circuit.bias
    torch.testing.assert_close(exported, own + bias, rtol=1e-4, atol=1e-4)
    judge = judges(prepared, 1)[1]
    assert judge.at(own, bias).csa == stored.record.circuit.heldout.csa
    whole = SmallAlexNet().eval()
    whole.load_state_dict(
        {f"{k}.weight": v for k, v in prepared.network.weights.items()}
        | {f"{k}.bias": v for k, v in prepared.network.biases.items()}
    )
    pruned = load_file(mask_path)
    for name, module_ in whole.named_modules():
        if f"{name}.weight" in pruned:
            torch.nn.utils.prune.custom_from_mask(module_, "weight", pruned[f"{name}.weight"])
    with torch.inference_mode():
        torch.testing.assert_close(whole(images)[:, 1], own, rtol=1e-4, atol=1e-4)


def test_evaluate_says_what_the_sweep_said(small) -> None:
    document, folder = small
    rows = json.loads(run("evaluate", folder, "--format", "json").stdout)
    said = {c["category"]: c["circuit"]["heldout"] for c in document["categories"]}
    assert {r["category"]: r["circuit"]["csa"] for r in rows} == {
        name: heldout["csa"] for name, heldout in said.items()
    }


def test_controls_do_worse_than_the_circuit(small) -> None:
    rows = json.loads(run("controls", small[1], "--format", "json").stdout)
    by = {(r["category"], r["control"]): r for r in rows}
    for name in ("Trouser", "Bag"):
        circuit, drawn = by[name, "circuit"], by[name, "random"]
        assert drawn["kept_weights"] == circuit["kept_weights"]
        assert drawn["extraction"]["csa"] < circuit["extraction"]["csa"]
        assert by[name, "complement"]["overlap"] == 0


def test_extract_chooses_anew_from_the_stored_curve(small, tmp_path) -> None:
    document, folder = small
    fresh = json.loads(
        run("sweep", "Trouser", *FEW, "--threshold", "0.3", "--out", tmp_path / "fresh",
            "--format", "json").stdout
    )  # fmt: skip
    again = json.loads(
        run("extract", folder, "--threshold", "0.3", "--out", tmp_path / "again",
            "--format", "json").stdout
    )  # fmt: skip
    chosen = {c["category"]: c for c in again["categories"]}["Trouser"]
    expected = fresh["categories"][0]
    assert chosen["circuit"]["kept_weights"] == expected["circuit"]["kept_weights"]
    assert chosen["cost"]["multiply_adds"] < expected["cost"]["multiply_adds"]
    assert chosen["circuit"]["pruned"] >= document["categories"][0]["circuit"]["pruned"]


def test_worker_shards_add_up_to_the_sweep(small, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small[1], folder, ignore=shutil.ignore_patterns("units", "*.parquet"))
    (folder / "images.parquet").unlink(missing_ok=True)
    run("worker", folder, "--shard", "1/10", "--quiet")  # the second of ten categories: Trouser
    expected, found = masks(small[1]), masks(folder)
    assert found and all((expected[k] == found[k]).all() for k in found)


@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
def test_looking_only_as_far_as_the_stop_rule_gives_the_same_circuit(stop, tmp_path) -> None:
    results = {}
    for screen in ("off", "on"):
        arguments = ["sweep", "Sandal", "--levels", "12", "--stop", stop, "--screen", screen]
        folder = tmp_path / screen
        results[screen] = json.loads(run(*arguments, "--out", folder, "--format", "json").stdout)
    off, on = (results[s]["categories"][0] for s in ("off", "on"))
    assert off["circuit"]["kept_weights"] == on["circuit"]["kept_weights"]
    a, b = masks(tmp_path / "off"), masks(tmp_path / "on")
    assert all((a[k] == b[k]).all() for k in a)
    assert on["cost"]["fpe"] < off["cost"]["fpe"]


@pytest.mark.parametrize(
    "options",
    [
        ["--preset", "paper-literal", "--levels", "5"],
        ["--preset", "vss", "--levels", "5"],
        ["--preset", "hamblin"],
        ["--dtype", "bfloat16", "--levels", "5"],
        ["--bias", "sgd", "--levels", "5"],
        ["--magnitude", "signed", "--normalise", "l1", "--levels", "5", "--ties", "snap"],
        ["--granularity", "filter", "--criterion", "snip", "--levels", "5"],
        ["--criterion", "random", "--seed", "3", "--levels", "5", "--memory", "50M"],
    ],
    ids=lambda o: "-".join(o).replace("--", ""),
)
def test_every_option_runs(options, tmp_path) -> None:
    done = run("sweep", "Trouser", *options, "--out", tmp_path / "run", "--format", "json")
    category = json.loads(done.stdout)["categories"][0]
    assert category["circuit"] is None or category["circuit"]["kept_weights"] > 0
    if "bfloat16" in options:  # certified in float32
        stage = category["stages"][-1]
        assert category["circuit"]["extraction"]["csa"] >= stage["threshold_csa"] - 1e-9


def test_csv_and_plan_and_stability_and_score(small, tmp_path) -> None:
    rows = list(csv.DictReader(io.StringIO(
        run("sweep", "Trouser", "Bag", *FEW, "--out", small[1], "--format", "csv").stdout
    )))  # fmt: skip
    assert [r["category"] for r in rows] == ["Trouser", "Bag"]
    planned = json.loads(run("plan", *FEW, "--no-probe", "--format", "json").stdout)
    executed = small[0]["categories"][0]["cost"]
    assert executed["fpe"] <= planned["fpe_upper"]
    scored = json.loads(
        run("score", "Trouser", "--out", tmp_path / "scores", "--format", "json").stdout
    )
    assert len(scored) == 8 and all(r["max"] > 0 for r in scored)
    assert list((tmp_path / "scores").glob("*.safetensors"))
    stable = json.loads(run("stability", "Trouser", "--format", "json").stdout)
    assert {(r["stage"], r["twice"]) for r in stable} == {
        (s, k) for s in ("fc", "conv") for k in (2, 4)
    }
    assert all(-1 <= r["spearman"] <= 1 for r in stable)


def test_no_top_level_kernels_package() -> None:
    code = "import circuitcore.kernels, sys; sys.exit('kernels' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=env, cwd="/").returncode == 0


@pytest.mark.slow
def test_full_size_alexnet_on_a_folder_of_pngs(tmp_path) -> None:
    """torchvision's AlexNet at 224 pixels, its last layer fitted to three kinds of real images."""
    import torchvision
    from PIL import Image
    from safetensors.torch import save_file

    from circuitcore.bundled import IMAGES

    names = ["Ankle boot", "Bag", "Trouser"]
    root = tmp_path / "images"
    for part, count in (("train", 4), ("val", 14)):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for file in sorted((IMAGES / part / name).glob("*.png"))[:count]:
                image = Image.open(file).convert("RGB").resize((96, 96))
                image.save(root / part / name / file.name)
    torch.manual_seed(0)
    model = torchvision.models.AlexNet(num_classes=3).eval()
    transform = torchvision.models.AlexNet_Weights.DEFAULT.transforms()
    files = [(i, p) for i, n in enumerate(names) for p in sorted((root / "val" / n).glob("*"))]
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(p)) for _, p in files])
        body = torch.flatten(model.avgpool(model.features(batch)), 1)
        body = model.classifier[:-1](body).double()
        wanted = torch.nn.functional.one_hot(torch.tensor([i for i, _ in files])).double() * 2 - 1
        centred = torch.cat([body, torch.ones(len(body), 1)], 1)
        gram = centred @ centred.T + 1e-6 * torch.eye(len(body))
        solution = centred.T @ torch.linalg.solve(gram, wanted)
    state = model.state_dict()
    state["classifier.6.weight"] = solution[:-1].T.float().contiguous()
    state["classifier.6.bias"] = solution[-1].float()
    save_file(state, tmp_path / "alexnet.safetensors")
    done = run(
        "sweep", "Bag", "--model", f"file:{tmp_path / 'alexnet.safetensors'}", "--arch", "alexnet",
        "--images", root, "--extraction-images", 8, "--heldout-images", 6,
        "--fc-levels", "0,0.5,0.9", "--conv-levels", "0,0.5", "--out", tmp_path / "run",
        "--format", "json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    (category,) = document["categories"]
    stages = {s["stage"]: s for s in category["stages"]}
    assert stages["fc"]["relevant_weights"] == 9216 * 4096 + 4096 * 4096 + 4096
    assert stages["conv"]["relevant_weights"] == 2_468_544
    assert category["unpruned"]["extraction"]["csa"] == 1
    assert [round(v["pruned"], 6) for v in stages["fc"]["levels"]] == [0, 0.5, 0.9]


def test_levels_out_of_order_are_sorted_and_it_says_so(tmp_path) -> None:
    arguments = ["sweep", "Trouser", "--levels", "0.9,0.5,0.5", "--out", tmp_path / "run"]
    done = run(*arguments, "--format", "json")
    assert "sorted" in done.stderr and "repeated" in done.stderr and "unpruned" in done.stderr
    levels = json.loads(done.stdout)["categories"][0]["stages"][0]["levels"]
    assert [round(level["pruned"], 3) for level in levels] == [0, 0.5, 0.9]
