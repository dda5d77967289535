"""Sweeps with other options, of other networks and images."""

import json

import pytest
import torch
from command import call, masks


@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
def test_looking_only_as_far_as_the_stop_rule_gives_the_same_circuit(stop, tmp_path) -> None:
    results = {}
    for screen in ("off", "on"):
        arguments = ["sweep", "Sandal", "--levels", "12", "--stop", stop, "--screen", screen]
        folder = tmp_path / screen
        results[screen] = json.loads(call(*arguments, "--out", folder, "--format", "json").stdout)
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
    done = call("sweep", "Trouser", *options, "--out", tmp_path / "run", "--format", "json")
    category = json.loads(done.stdout)["categories"][0]
    assert category["circuit"] is None or category["circuit"]["kept_weights"] > 0
    if "bfloat16" in options:  # certified in float32
        stage = category["stages"][-1]
        held = category["circuit"]["extraction"]
        if stage["threshold_hits"] is None:
            assert held["csa"] >= stage["threshold_csa"] - 1e-9
        else:
            assert held["hit"] >= stage["threshold_hits"] - 1e-9


def test_levels_out_of_order_are_sorted_and_it_says_so(tmp_path) -> None:
    arguments = ["sweep", "Trouser", "--levels", "0.9,0.5,0.5", "--out", tmp_path / "run"]
    done = call(*arguments, "--format", "json")
    assert "sorted" in done.stderr and "repeated" in done.stderr and "unpruned" in done.stderr
    levels = json.loads(done.stdout)["categories"][0]["stages"][0]["levels"]
    assert [round(level["pruned"], 3) for level in levels] == [0, 0.5, 0.9]


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
    done = call(
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
