"""Data sets in hand: chosen, hashed, split and refused as a folder of the same files is."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

import circuitcore as cc
from circuitcore.errors import InputError
from circuitcore.inputs.datasets import Datasets
from circuitcore.inputs.image_files import Folder, choose_images
from circuitcore.inputs.pixels import Preprocessing

PLAIN = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
COUNTS = (2, 3, 2)
NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two categories, sorted by name in another order than they were written."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 6)):
        for name in NAMES:
            (folder / part / name).mkdir(parents=True)
            for number in reversed(range(count)):
                pixels = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def folders(root):
    return {part: ImageFolder(str(root / part)) for part in ("train", "val")}


def on_disk(root, tmp_path):
    """The same as Hugging Face data sets, written to disk and read again."""
    found = {}
    for part in ("train", "val"):
        made = datasets.load_dataset("imagefolder", data_dir=str(root / part), split="train",
                                     cache_dir=str(tmp_path / "cache"))  # fmt: skip
        made.save_to_disk(str(tmp_path / part))
        found[part] = datasets.load_from_disk(str(tmp_path / part))
    return found


def lists(root):
    return {
        part: [(str(file), file.parent.name) for file in sorted((root / part).glob("*/*.png"))]
        for part in ("train", "val")
    }


def chosen(source, counts=COUNTS):
    """(split, category, sha256, pixels) of every image of a run."""
    found = choose_images(source, list(enumerate(source.categories())), counts)
    return [(i.split, i.category, i.sha256, source.pixels(i.path, PLAIN).tobytes()) for i in found]


@pytest.mark.parametrize("kind", ["ImageFolder", "Hugging Face", "paths"])
def test_the_same_images_are_chosen_as_from_the_folder(kind, root, tmp_path):
    given = {
        "ImageFolder": lambda: folders(root),
        "Hugging Face": lambda: on_disk(root, tmp_path),
        "paths": lambda: lists(root),
    }[kind]()
    source = Datasets(given, COUNTS[0])
    assert source.categories() == list(NAMES)
    assert chosen(source) == chosen(Folder(root))


class Items(torch.utils.data.Dataset):
    """A data set of one's own: images made when they are asked for."""

    classes = NAMES

    def __init__(self, root, transform=None):
        self.files = sorted((root / "val").glob("*/*.png"))
        self.transform = transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, at):
        image = Image.open(self.files[at]).convert("RGB")
        label = NAMES.index(self.files[at].parent.name)
        return (self.transform(image) if self.transform else image), label


def test_one_data_set_alone_is_split_in_its_own_order(root):
    source = Datasets(Items(root), 1)
    found = choose_images(source, list(enumerate(NAMES)), (1, 3, 2))
    for unit, start in ((0, 0), (1, 6)):
        mine = {s: [int(i.path.partition("/")[2]) for i in found
                    if i.category == unit and i.split == s]
                for s in ("scoring", "extraction", "heldout")}  # fmt: skip
        assert mine == {"scoring": [start], "extraction": [start + 1, start + 2, start + 3],
                        "heldout": [start + 4, start + 5]}  # fmt: skip
    assert len({i.sha256 for i in found}) == len(found)
    pixels = {f[3] for f in chosen(source, (1, 3, 2))}
    files = {Folder(root).pixels(f"val/{n}/{i}.png", PLAIN).tobytes()
             for n in NAMES for i in range(6)}  # fmt: skip
    assert pixels == files


def test_a_data_set_that_gives_tensors_needs_a_model_without_a_transform(root):
    ready = Preprocessing(None, None, (0.0,) * 3, (1.0,) * 3, ready=True)
    made = Datasets(Items(root, transforms.ToTensor()), 1)
    with pytest.raises(InputError, match="already gives tensors.*transform=None"):
        made.pixels("val/0", PLAIN)
    assert made.pixels("val/0", ready).dtype == np.float32
    with pytest.raises(InputError, match="val/0.*tensors were said to come ready"):
        Datasets(Items(root), 1).pixels("val/0", ready)


def test_what_is_refused(root):
    with pytest.raises(InputError, match="no map-style data set"):
        Datasets(iter(()), 1)
    with pytest.raises(InputError, match="no attribute 'classes'"):
        Datasets(torch.utils.data.TensorDataset(torch.zeros(2)), 1)
    one = lists(root)
    one["val"] = [(path, label) for path, label in one["val"] if label == "cat"]
    with pytest.raises(InputError, match="'dog' is in only one of train and val"):
        Datasets(one, 1).categories()
    few = Datasets(folders(root), 2)
    with pytest.raises(InputError, match=r"images: val/cat: 6 images, 4 for extraction \+ 3"):
        choose_images(few, list(enumerate(NAMES)), (2, 4, 3))
    twice = lists(root)
    twice["val"][4] = twice["val"][0]
    with pytest.raises(InputError, match="the same image stands in the extraction set"):
        choose_images(Datasets(twice, 2), list(enumerate(NAMES)), (2, 3, 2))
    gone = lists(root)
    gone["train"][0] = (str(root / "none.png"), "cat")
    with pytest.raises(InputError, match="images: train/0: .*none.png: cannot be read"):
        choose_images(Datasets(gone, 2), list(enumerate(NAMES)), COUNTS)


def test_an_unreadable_image_is_named_and_left_out_where_that_is_allowed(tmp_path):
    from circuitcore.bundled import IMAGES

    files = {part: [(str(file), file.parent.name) for file in sorted((IMAGES / part).glob("*/*"))]
             for part in ("train", "val")}  # fmt: skip
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    first = next(i for i, (_, label) in enumerate(files["val"]) if label == "Bag")
    files["val"][first] = (str(broken), "Bag")
    options = {"extraction_images": 5, "heldout_images": 5, "levels": "0,0.5", "categories": "Bag"}
    with pytest.raises(InputError, match="broken.png: not a readable image"):
        cc.sweep(images=files, out=tmp_path / "run", **options)
    run = cc.sweep(images=files, out=tmp_path / "other", max_bad=1, **options)
    assert len(run) == 1
    assert f"val/{first}" in (run.folder / "quarantine" / "images.json").read_text()


def test_labels_are_those_of_the_items_and_mean_one_category(root, tmp_path):
    part = ImageFolder(str(root / "val"))
    part.samples = part.samples[3:]  # a usual way to drop files; targets stay as they were
    source = Datasets({"train": ImageFolder(str(root / "train")), "val": part}, 2)
    assert len(source.listed("val", "cat")) == 3 and len(source.listed("val", "dog")) == 6
    hidden = on_disk(root, tmp_path)
    features = hidden["val"].features
    hidden["val"] = hidden["val"].map(lambda row: {"label": -1}, features=features)
    with pytest.raises(InputError, match="label -1 of Dataset has no name"):
        Datasets(hidden, 2)
    twice = Items(root)
    twice.classes = ("cat", "cat")
    with pytest.raises(InputError, match="two labels of Items are called 'cat'"):
        Datasets(twice, 1)
    shaky = Items(root, transforms.RandomErasing(1.0))
    shaky.transform = transforms.Compose([transforms.ToTensor(), shaky.transform])
    with pytest.raises(InputError, match="another image each time"):
        Datasets(shaky, 1)
    with pytest.raises(InputError, match="'train' and 'val', not 'train', 'validation'"):
        Datasets({"train": Items(root), "validation": Items(root)}, 1)
    subset = torch.utils.data.Subset(Items(root), [0, 1, 2, 6, 7, 8])
    assert Datasets(subset, 1).categories() == list(NAMES)


def test_a_palette_is_part_of_an_image(root):
    class Palettes(Items):
        inverted = False

        def __getitem__(self, at):
            image = Image.new("P", (4, 4))
            image.putpalette([255 * self.inverted, at, 0] * 256)
            return image, at % 2

    plain, other = Palettes(root), Palettes(root)
    other.inverted = True
    hashes = [Datasets(each, 1).sha256("val/1") for each in (plain, plain, other)]
    assert hashes[0] == hashes[1] != hashes[2]
