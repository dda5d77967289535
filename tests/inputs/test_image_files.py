"""Bad input: every fault ends in its exit code and one message that says where and what to do.

Each test names its fault; the command line is run in this process, from arguments to exit code.
"""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuitcore.bundled import CATEGORIES, IMAGES, WEIGHTS
from circuitcore.cli.main import run
from circuitcore.errors import InputError
from circuitcore.inputs.categories import map_folders

SMALL = ["--scoring-images", "1", "--extraction-images", "4", "--heldout-images", "2"]
SMALL += ["--levels", "0,0.5", "--quiet"]


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return code, out, err

    return call


@pytest.fixture
def images(tmp_path):
    """Make an images folder from the bundled images: {folder name: bundled category}."""

    def make(names, train=1, val=6, name="images"):
        root = tmp_path / name
        for part, count in (("train", train), ("val", val)):
            for folder, category in names.items():
                files = sorted((IMAGES / part / category).glob("*.png"))[:count]
                (root / part / folder).mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copy(file, root / part / folder / file.name)
        return root

    return make


ALL = dict(zip(CATEGORIES, CATEGORIES, strict=True))


@pytest.fixture
def weights(tmp_path):
    """The bundled weights after ``change`` was made to them, as a safetensors file."""

    def make(change=lambda state: None, name="weights.safetensors"):
        state = {key: value.float() for key, value in load_file(WEIGHTS).items()}
        change(state)
        save_file(state, tmp_path / name)
        return tmp_path / name

    return make


def bundled_file(path):
    return ["--model", f"file:{path}", "--arch", "bundled"]


# --- images and categories (8 to 13) --------------------------------------------------------------


@pytest.mark.parametrize("part", ["train", "val"])
def test_8_too_few_images(command, images, part):
    root = images(ALL)
    for file in list((root / part / "Sandal").iterdir())[1 if part == "val" else 0 :]:
        file.unlink()
    code, out, err = command("sweep", "--images", root, *SMALL, "--out", "run")
    assert code == 3 and not out
    assert f"{part}/Sandal" in err and ("1 for scoring" if part == "train" else "4 for") in err
    assert ("0 images" if part == "train" else "1 images") in err
    assert "--extraction-images" in err
    assert not os.path.exists("run")


def test_9_the_same_image_in_two_sets(command, images):
    root = images(ALL)
    first, *_, last = sorted((root / "val" / "Bag").iterdir())
    shutil.copy(first, last)
    code, _, err = command("sweep", "--images", root, *SMALL, "--out", "run")
    assert code == 3 and "same image" in err and first.name in err and last.name in err


def test_10_some_of_the_categories_are_matched_by_name(command, images):
    root = images({name: name for name in ("Ankle boot", "Trouser", "Bag")})
    code, out, _ = command("sweep", "--images", root, *SMALL, "--out", "run", "--format", "json")
    assert code == 0
    document = json.loads(out)
    assert [(c["index"], c["category"]) for c in document["categories"]] == [
        (1, "Trouser"),
        (8, "Bag"),
        (9, "Ankle boot"),
    ]


def test_10_folders_of_a_thousand_are_never_matched_by_rank(tmp_path):
    wnids = [f"n{1440764 + 13 * i:08d}" for i in range(1000)]
    some = sorted(wnids[i] for i in (3, 14, 159, 265, 358, 600, 793, 846, 950, 999))
    listed = tmp_path / "wnids.txt"
    listed.write_text("\n".join(wnids))
    own = [f"name {i}" for i in range(1000)]
    mapping = map_folders(some, 1000, own, listed)
    assert [c.index for c in mapping.categories] == [wnids.index(name) for name in some]
    for names in (own, None):
        with pytest.raises(InputError, match="n0144.*--categories FILE"):
            map_folders(some, 1000, names, None)


def test_11_numbered_folders_keep_their_numbers(command, images, tmp_path):
    mapping = map_folders(["0", "1", "10", "100", "2"], 101, None, None)
    assert [(c.index, c.folder) for c in mapping.categories] == [
        (i, str(i)) for i in (0, 1, 2, 10, 100)
    ]
    assert "by number" in mapping.rule
    with pytest.raises(InputError, match="--categories"):
        map_folders(["0", "1", "10", "101"], 101, None, None)
    root = images({str(i): name for i, name in enumerate(CATEGORIES) if i in (1, 7, 9)})
    loud = [option for option in SMALL if option != "--quiet"]
    code, out, err = command("sweep", "--images", root, *loud, "--out", "run", "--format", "json")
    assert code == 0 and "by number" in err
    assert [c["index"] for c in json.loads(out)["categories"]] == [1, 7, 9]


def test_12_labels_in_another_order_stop_the_sweep(command, images):
    order = dict(zip(CATEGORIES, CATEGORIES[1:] + CATEGORIES[:1], strict=True))
    code, out, err = command("sweep", "--images", images(order), *SMALL, "--out", "run")
    assert code == 3 and not out
    assert "another order" in err and "--categories" in err
    assert "'Sandal' -> unit 6" in err  # the folder called Sandal holds shirts
    assert not list(__import__("pathlib").Path("run").rglob("*.safetensors"))


def test_12_accuracy_near_chance_stops_the_sweep(command, images, weights):
    def scramble(state):
        generator = torch.Generator().manual_seed(0)
        for key, value in state.items():
            state[key] = torch.randn(value.shape, generator=generator) * 0.05

    root, path = images(ALL), weights(scramble)
    listed = root.parent / "order.txt"
    listed.write_text("\n".join(CATEGORIES))
    code, _, err = command(
        "sweep", "--images", root, *bundled_file(path), "--categories", listed, *SMALL, "--out", "r"
    )
    assert code == 3 and ("near chance" in err or "another order" in err), err


@pytest.mark.parametrize(("typed", "near"), [("Truoser", "Trouser"), ("ankle boots", "Ankle boot")])
def test_13_a_category_that_is_not_there(command, typed, near):
    code, out, err = command("sweep", typed, "--out", "run")
    assert code == 2 and not out
    assert repr(typed) in err and repr(near) in err
    assert not os.path.exists("run")


# --- weights (14 to 19) ---------------------------------------------------------------------------


class Payload:
    """A pickle that touches a file when it is loaded carelessly."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


@pytest.mark.parametrize("flags", [[], ["--allow-pickle"]])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_14_code_in_a_pickle_is_never_run(command, tmp_path, flags, how):
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    if how == "torch":
        torch.save({"classifier.6.weight": Payload(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"classifier.6.weight": Payload(canary)}))
    code, _, err = command("sweep", *bundled_file(path), *flags, "--out", "run")
    assert code == 3 and "evil.pt" in err
    assert not canary.exists()
    assert flags or ("--allow-pickle" in err and "safetensors" in err)


@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_15_truncated_checkpoint(command, tmp_path, weights, fraction):
    whole = tmp_path / "whole.pt"
    torch.save(load_file(weights()), whole)
    content = whole.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(fraction * len(content))])
    code, out, err = command("sweep", *bundled_file(path), "--allow-pickle", "--out", "run")
    assert code == 3 and not out
    assert "cut.pt" in err and err.count("error:") == 1


def test_15_a_whole_checkpoint_is_read_when_allowed(command, weights, tmp_path):
    torch.save({"state_dict": load_file(weights())}, tmp_path / "whole.pt")
    code, out, _ = command(
        "sweep", "Bag", *bundled_file(tmp_path / "whole.pt"), "--allow-pickle", *SMALL,
        "--out", "run", "--format", "json", "--categories", _names(tmp_path),
    )  # fmt: skip
    assert code == 0 and json.loads(out)["categories"][0]["index"] == 8


def _names(folder):
    path = folder / "names.txt"
    path.write_text("\n".join(CATEGORIES))
    return path


def tensors(header, data=b"", size=None):
    """A safetensors file from its header, as text or table."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALFORMED = {
    "empty": b"",
    "short": b"\x10\x00\x00",
    "header longer than the file": tensors({"a": entry(0, 4, [1])}, b"\0" * 4, size=10**6),
    "header of 2**63 bytes": tensors({"a": entry(0, 4, [1])}, b"\0" * 4, size=2**63),
    "header that is no JSON": tensors(b"{nonsense", b""),
    "header that is no table": tensors([1, 2], b""),
    "overlap": tensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12),
    "trailing bytes": tensors({"a": entry(0, 4, [1])}, b"\0" * 12),
    "missing bytes": tensors({"a": entry(0, 400, [100])}, b"\0" * 12),
    "overflowing shape": tensors({"a": entry(0, 4, [2**62, 2**62, 16])}, b"\0" * 4),
    "shape unlike its bytes": tensors({"a": entry(0, 8, [3])}, b"\0" * 8),
    "negative offsets": tensors({"a": entry(-4, 0, [1])}, b"\0" * 4),
    "unknown type": tensors({"a": entry(0, 4, [1], "F31")}, b"\0" * 4),
    "duplicate keys": tensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "a name with ..": tensors({"../../x": entry(0, 4, [1])}, b"\0" * 4),
    "an absolute name": tensors({"/etc/x": entry(0, 4, [1])}, b"\0" * 4),
    "a name with a backslash": tensors({"..\\x": entry(0, 4, [1])}, b"\0" * 4),
    "deeply nested header": tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "not unicode": tensors(b'{"\xff\xfe":1}', b""),
}


@pytest.mark.parametrize("what", list(MALFORMED))
def test_16_17_malformed_safetensors(command, tmp_path, what):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[what])
    code, out, err = command("sweep", *bundled_file(path), "--out", "run")
    assert code == 3 and not out, (code, err)
    assert "bad.safetensors" in err


@pytest.mark.parametrize("path", ["nowhere.safetensors", "nowhere.pt", "."])
def test_a_weights_file_that_is_not_there(command, path):
    code, _, err = command("sweep", *bundled_file(path), "--allow-pickle", "--out", "run")
    assert code == 3 and path in err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["features.3.weight", "classifier.6.bias"])
def test_18_nan_or_infinity_in_weights(command, weights, bad, key):
    path = weights(lambda state: state[key].view(-1)[5].fill_(bad))
    code, _, err = command("sweep", *bundled_file(path), "--out", "run")
    layer, _, kind = key.rpartition(".")
    assert code == 3 and layer in err and kind in err and "NaN" in err
    assert "weights.safetensors" in err


def test_19_weights_of_another_architecture(command, weights):
    code, _, err = command("sweep", "--model", f"file:{weights()}", "--arch", "alexnet")
    assert code == 3 and "features.0.weight" in err and "(64, 3, 11, 11)" in err and "--arch" in err
    code, _, err = command("sweep", "--model", f"file:{weights()}", "--arch", "resnet18")
    assert code == 3 and "fc.weight" in err and "--arch" in err


def test_19_missing_and_unexpected_names(command, weights):
    def change(state):
        state["extra.weight"] = state.pop("features.3.weight")

    code, _, err = command("sweep", *bundled_file(weights(change)), "--out", "run")
    assert code == 3 and "Missing: features.3.weight" in err and "Unexpected: extra.weight" in err


@pytest.mark.parametrize("arch", ["alexnot", "resnet_18", None])
def test_19_no_such_architecture(command, weights, arch):
    given = ["--arch", arch] if arch else []
    code, _, err = command("sweep", "--model", f"file:{weights()}", *given)
    assert code == 2 and "--arch" in err
    if arch == "alexnot":
        assert "'alexnet'" in err


# --- a category never got right (22), devices (23) ------------------------------------------------


def test_22_a_category_the_network_never_gets_right(command, weights, images, tmp_path):
    def mute(state):
        state["classifier.6.weight"][2] = 0
        state["classifier.6.bias"][2] = -1e4

    arguments = ["sweep", *bundled_file(weights(mute)), "--categories", _names(tmp_path), *SMALL]
    arguments += ["--images", images(ALL), "--out", "run"]
    code, out, err = command(*arguments, "--format", "json", "Pullover", "Trouser", "Bag")
    assert code == 0, err
    document = json.loads(out)
    by_name = {c["category"]: c for c in document["categories"]}
    assert by_name["Pullover"]["circuit"] is None and not by_name["Pullover"]["stages"]
    assert by_name["Trouser"]["circuit"] is not None
    summary = document["summary"]
    assert (summary["categories"], summary["undefined"]) == (
        3,
        {"no hits of the unpruned network": 1},
    )
    defined = [c["circuit"]["heldout"]["csa"] for c in by_name.values() if c["circuit"]]
    assert summary["mean_heldout_csa"] == pytest.approx(np.mean(defined))
    assert document["overlap"]["pairs"] == 1
    code, out, _ = command(*arguments, "Pullover", "Trouser", "Bag")
    assert code == 0 and "Pullover" in out and "NA" in out


def test_22_no_category_has_a_circuit(command, weights, images, tmp_path):
    def mute(state):
        state["classifier.6.weight"][2] = 0
        state["classifier.6.bias"][2] = -1e4

    code, out, err = command(
        "sweep", *bundled_file(weights(mute)), "--categories", _names(tmp_path), *SMALL,
        "--images", images(ALL), "--out", "run", "--format", "json", "Pullover",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)["summary"]
    assert summary["undefined"] == {"no hits of the unpruned network": 1}
    assert summary["mean_heldout_csa"] is None


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize(
    "flags",
    [
        ["--gpu", "7"],
        ["--device", "cuda:7"],
        pytest.param(["--gpu", "0"], marks=no_gpu),
        pytest.param(["--device", "cuda"], marks=no_gpu),
    ],
)
def test_23_no_such_device(command, flags):
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    code, out, err = command("sweep", *flags, "--out", "run")
    assert code == 5 and not out
    assert f"cuda:{flags[1][-1] if flags[1][-1].isdecimal() else 0}" in err and "cpu (" in err
    assert not os.path.exists("run")


def test_23_a_device_hidden_by_the_environment(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "circuitcore.cli.main", "sweep", "--gpu", "0"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5 and not done.stdout
    assert "CUDA_VISIBLE_DEVICES" in done.stderr and "cpu (" in done.stderr
    assert "Traceback" not in done.stderr


def test_23_no_device_of_that_name(command):
    code, _, err = command("sweep", "--device", "tpu", "--out", "run")
    assert code == 2 and "--device tpu" in err and "cpu" in err
