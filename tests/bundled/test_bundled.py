"""The bundled example is what it says: its size, its images, its accuracy, its training."""

import gzip
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from circuitcore.bundled import CATEGORIES, FOLDER, IMAGES, WEIGHTS, fashion_mnist, train
from circuitcore.bundled.fashion_mnist import DEBIAN_FOLDER, choose_images, read_split
from circuitcore.bundled.network import SmallAlexNet, load_bundled, read_header

needs_data = pytest.mark.skipif(
    not (DEBIAN_FOLDER / "t10k-images-idx3-ubyte.gz").is_file(),
    reason=f"no data in {DEBIAN_FOLDER}: apt-get install dataset-fashion-mnist",
)
SHIPPED = sorted(IMAGES.glob("*/*/*.png"))


def shipped_images(folder: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pixels and labels of `images/<folder>`, labels in unit order."""
    paths = [
        (p, n) for n, c in enumerate(CATEGORIES) for p in sorted((IMAGES / folder / c).iterdir())
    ]
    pixels = np.stack([np.asarray(Image.open(path)) for path, _ in paths])
    return pixels, np.array([label for _, label in paths], dtype=np.uint8)


def synthetic_images(count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def test_the_weights_file_is_small_and_holds_float16() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000
    length = struct.unpack("<Q", WEIGHTS.read_bytes()[:8])[0]
    header = json.loads(WEIGHTS.read_bytes()[8 : 8 + length])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}


def test_the_header_says_what_the_network_needs() -> None:
    header = read_header()
    assert header["arch"] == "SmallAlexNet"
    assert json.loads(header["categories"]) == list(CATEGORIES)
    assert json.loads(header["input_size"]) == [1, 28, 28]
    assert float(header["heldout_accuracy"]) >= 0.90
    assert int(header["seed"]) >= 0


def test_load_bundled_gives_an_evaluating_float32_network() -> None:
    network, categories, preprocessing = load_bundled()
    assert not network.training
    assert categories == list(CATEGORIES)
    assert (preprocessing.mean, preprocessing.std) == ((train.MEAN,), (train.STD,))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


def test_the_network_has_the_shape_of_alexnet() -> None:
    network = SmallAlexNet()
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(nn.Conv2d) == 5
    assert kinds.count(nn.Linear) == 3
    names = list(network.state_dict())
    assert names[0] == "features.0.weight"
    assert names[-2:] == ["classifier.6.weight", "classifier.6.bias"]
    torchvision_names = {f"features.{n}" for n in (0, 3, 6, 8, 10)}
    torchvision_names |= {f"classifier.{n}" for n in (1, 4, 6)}
    assert {name.rsplit(".", 1)[0] for name in names} == torchvision_names


def test_the_network_can_be_traced() -> None:
    network = load_bundled().network
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(x), network(x))


def test_there_are_32_and_50_distinct_images_a_category() -> None:
    for folder, count in (("train", 4 + 28), ("val", 50)):
        assert {path.name for path in (IMAGES / folder).iterdir()} == set(CATEGORIES)
        for category in CATEGORIES:
            assert len(list((IMAGES / folder / category).iterdir())) == count
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in SHIPPED}
    assert len(hashes) == len(SHIPPED) == 540 + 280


def test_every_image_is_28_pixels_square_and_gray() -> None:
    for path in SHIPPED:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28)), path


def test_the_network_recognises_the_shipped_images() -> None:
    assert train.accuracy(load_bundled().network, *shipped_images("val")) >= 0.88


def test_the_licence_is_stated() -> None:
    text = (FOLDER / "LICENSE-fashion-mnist").read_text(encoding="utf-8")
    assert "2017 Zalando SE" in text
    assert "https://github.com/zalandoresearch/fashion-mnist" in text


@needs_data
def test_the_stored_accuracy_is_that_of_all_test_images() -> None:
    test = read_split("test")
    reached = train.accuracy(load_bundled().network, test.images, test.labels)
    assert reached == pytest.approx(float(read_header()["heldout_accuracy"]), abs=0.002)


@needs_data
def test_the_shipped_images_are_the_ones_the_seed_chooses_from_the_original_files() -> None:
    splits = {"train": read_split("train"), "test": read_split("test")}
    chosen = choose_images(splits["train"], splits["test"], int(read_header()["seed"]))
    for split, part, folder, prefix in (
        ("train", "train", "train", ""), ("test", "test", "val", ""),
        ("train", "pool", "train", "pool-"),
    ):  # fmt: skip
        for category, indices in zip(CATEGORIES, chosen[part], strict=True):
            paths = sorted((IMAGES / folder / category).iterdir())
            paths = [path for path in paths if path.name.startswith("pool-") == bool(prefix)]
            names = [f"{prefix}{index:05d}.png" for index in indices]
            assert [path.name for path in paths] == names
            for path, index in zip(paths, indices, strict=True):
                assert np.array_equal(np.asarray(Image.open(path)), splits[split].images[index])


def test_the_seed_alone_decides_the_trained_weights() -> None:
    images, labels = synthetic_images(300)
    before = torch.get_rng_state()
    first, again, other = (
        train.train_network(images, labels, seed=seed, epochs=1).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert not torch.equal(value, other[name]), name


def test_augmenting_mirrors_some_images_and_changes_nothing_else() -> None:
    x = train.normalise(synthetic_images(64)[0])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        out = train.augment(x)
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_rounding_to_half_keeps_what_is_stored() -> None:
    network = SmallAlexNet()
    state = train.round_to_half(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name].float())


def write_idx(path: Path, data: NDArray[np.uint8]) -> None:
    header = struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape)
    raw = header + data.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize(("below", "suffix"), [("", ".gz"), ("FashionMNIST/raw", "")])
def test_both_layouts_of_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, suffix: str
) -> None:
    images, labels = synthetic_images(20)
    monkeypatch.setitem(fashion_mnist._SIZES, "test", 20)
    place = tmp_path / below
    place.mkdir(parents=True, exist_ok=True)
    write_idx(place / f"t10k-images-idx3-ubyte{suffix}", images)
    write_idx(place / f"t10k-labels-idx1-ubyte{suffix}", labels)
    split = read_split("test", tmp_path)
    assert np.array_equal(split.images, images)
    assert np.array_equal(split.labels, labels)


def test_missing_data_say_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 3
    message = capsys.readouterr().err
    assert "dataset-fashion-mnist" in message and "--data" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [b"", b"\x00\x00\x08", b"\x1f\x8b\x08truncated"])
def test_damaged_data_are_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(ValueError, match=re.escape("t10k-images-idx3-ubyte.gz")):
        read_split("test", tmp_path)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    images, labels = synthetic_images(20)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ValueError, match="another data set"):
        read_split("test", tmp_path)
