"""Which images and categories a run takes where something is amiss, and how it is told to go on."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from command import call, masks
from pictures import write_tar

import circuitcore
from circuitcore.bundled import CATEGORIES, IMAGES
from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.categories import Category as Unit
from circuitcore.inputs.categories import check_assignment, finder, map_folders
from circuitcore.inputs.read import read_inputs
from circuitcore.options import Options
from circuitcore.runs.folder import configuration, open_run

CHOSEN = ("Trouser", "Bag", "Ankle boot")
COUNTS = {"scoring_images": 1, "extraction_images": 4, "heldout_images": 2}
SMALL = ["--scoring-images", "1", "--extraction-images", "4", "--heldout-images", "2",
         "--levels", "0,0.5", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Three bundled categories, one image more than is needed in train and two more in val."""
    root = tmp_path / "images"
    for part, count in (("train", 2), ("val", 8)):
        for name in CHOSEN:
            (root / part / name).mkdir(parents=True)
            for file in sorted((IMAGES / part / name).glob("*.png"))[:count]:
                shutil.copy(file, root / part / name / file.name)
    return root


def inputs_of(root, **options):
    return read_inputs(Options(images=str(root), **COUNTS, **options))


def files(root, part, name):
    return sorted((root / part / name).iterdir())


# --- names and units (fault 4, 16) ----------------------------------------------------------------


def test_two_folders_of_one_name_are_refused_naming_both():
    with pytest.raises(InputError, match="'Cat' and 'cat' would both be unit 0 \\('cat'\\)"):
        map_folders(["Cat", "cat", "dog"], 2, ["cat", "dog"], None)
    pair = ["caf\u00e9", "cafe\u0301"]
    with pytest.raises(InputError, match="would both be unit 0"):
        map_folders(pair, 2, [pair[0], "dog"], None)


def test_names_that_differ_by_case_alone_are_two_where_the_model_has_both():
    found = map_folders(["CAT", "Cat", "dog"], 3, ["Cat", "dog", "CAT"], None)
    assert [(c.index, c.folder) for c in found.categories] == [(0, "Cat"), (1, "dog"), (2, "CAT")]
    with pytest.raises(InputError, match="'cAt' could be unit 0 or 2"):
        map_folders(["cAt"], 3, ["Cat", "dog", "CAT"], None)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_names_are_the_same_however_unicode_spells_them(form, other, mark, tmp_path):
    folder = unicodedata.normalize(form, "Caf\u00e9")
    listed = tmp_path / "names.txt"
    listed.write_text(mark + unicodedata.normalize(other, "caf\u00e9\ndog\n"), encoding="utf-8")
    found = map_folders([folder], 2, None, listed)
    assert [(c.index, c.folder) for c in found.categories] == [(0, folder)]
    assert finder([Unit(0, folder, "n01")])(unicodedata.normalize(other, "CAF\u00c9")).index == 0


# --- what the unpruned network knows (fault 11) ---------------------------------------------------


def units(count):
    return [Unit(i, f"c{i}", f"c{i}") for i in range(count)]


@pytest.mark.parametrize(("images", "few"), [(2, True), (3, False)])
def test_few_images_are_called_few_though_all_are_right(images, few):
    actual = np.repeat(np.arange(3), images)
    if few:
        with pytest.raises(InputError) as error:
            check_assignment(actual, actual, units(3), 3)
        assert "6 extraction images are too few to tell" in str(error.value)
        assert "near chance" not in str(error.value) and "--labels as-given" in str(error.value)
    else:
        assert check_assignment(actual, actual, units(3), 3) == 1.0
    assert check_assignment(actual, actual, units(3), 3, stop=False) == 1.0


def test_a_network_of_one_output_is_refused_for_that():
    for stop in (True, False):
        with pytest.raises(InputError, match="has one output"):
            check_assignment(np.zeros(50, int), np.zeros(50, int), units(1), 1, stop)


def test_labels_in_another_order_and_chance_go_on_where_asked():
    actual = np.repeat(np.arange(4), 20)
    for predicted, said in (((actual + 1) % 4, "another order"), (actual * 0, "near chance")):
        with pytest.raises(InputError, match=said) as error:
            check_assignment(predicted, actual, units(4), 4)
        assert "--labels as-given" in str(error.value)
        own = float((predicted == actual).mean())
        assert check_assignment(predicted, actual, units(4), 4, stop=False) == own


def test_a_sweep_whose_labels_are_wrong_is_refused_without_a_folder_and_goes_on_where_asked(
    images, tmp_path
):
    for part in ("train", "val"):
        (images / part / "Bag").rename(images / part / "aside")
        (images / part / "Trouser").rename(images / part / "Bag")
        (images / part / "aside").rename(images / part / "Trouser")
    said = call("sweep", "--images", images, *SMALL, "--out", tmp_path / "r", code=3).stderr
    assert "another order" in said
    assert not (tmp_path / "r").exists()
    (tmp_path / "mine").mkdir()
    call("sweep", "--images", images, *SMALL, "--out", tmp_path / "mine", code=3)
    assert (tmp_path / "mine").exists()  # what was there before stays
    call("sweep", "--images", images, *SMALL, "--out", tmp_path / "r", "--labels", "as-given")
    assert open_run(tmp_path / "r").manifest["options"]["labels"] == "as-given"


# --- the same image twice (fault 18) --------------------------------------------------------------


def test_the_same_image_twice_is_refused_with_a_way_out(images):
    first, second, *_, last = files(images, "val", "Bag")
    kept = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(InputError) as error:
        inputs_of(images)
    assert f"twice in the extraction set (val/Bag/{first.name} and" in str(error.value)
    assert "--duplicates drop" in str(error.value)
    found = inputs_of(images, duplicates="drop")
    names = [i.path for i in found.images if i.category == 8 and i.split != "scoring"]
    assert len(names) == 6 and f"val/Bag/{second.name}" not in names
    assert found.notes[-1] == f"images left out that are there already (1): val/Bag/{second.name}"
    second.unlink()  # as if it had never been there: the same units
    assert configuration(found, Options()) == configuration(inputs_of(images), Options())
    second.write_bytes(kept)
    shutil.copy(files(images, "train", "Bag")[0], last.with_name("zz.png"))  # beyond what is used
    assert inputs_of(images).notes == ()


def test_of_an_image_in_two_categories_the_first_stays(images):
    shutil.copy(files(images, "val", "Trouser")[0], files(images, "val", "Bag")[0])
    with pytest.raises(InputError, match="twice in the extraction set .*Trouser.*Bag"):
        inputs_of(images)
    found = inputs_of(images, duplicates="drop")
    assert sum(i.category == 1 for i in found.images) == sum(i.category == 8 for i in found.images)
    assert len({i.sha256 for i in found.images}) == len(found.images) == 21


def test_repeated_and_unreadable_images_are_left_out_together(images):
    bag = files(images, "val", "Bag")
    shutil.copy(bag[0], bag[1])
    bag[6].write_bytes(b"no image")  # takes the place of bag[1]
    found = inputs_of(images, duplicates="drop", max_bad=1)
    names = {i.path.rpartition("/")[2] for i in found.images if i.category == 8}
    assert bag[7].name in names and not {bag[1].name, bag[6].name} & names
    assert list(found.left_out) == [f"val/Bag/{bag[6].name}"]


# --- categories that lack images (fault 21) -------------------------------------------------------


def test_a_category_without_images_is_named_and_others_go_on_where_asked(images, tmp_path):
    shutil.rmtree(images / "val" / "Bag")
    with pytest.raises(
        InputError, match="'Bag' is in only one of train and val .*in val\\); --inc"
    ):
        inputs_of(images)
    said = call("sweep", "--images", images, *SMALL, "--incomplete", "drop", "--out",
                tmp_path / "run").stderr  # fmt: skip
    assert "categories left out for want of images: Bag (0 of 6 in val)" in said
    assert [c["name"] for c in open_run(tmp_path / "run").manifest["categories"]] == [
        "Trouser", "Ankle boot",
    ]  # fmt: skip
    for file in files(images, "train", "Trouser")[1:] + files(images, "val", "Trouser")[5:]:
        file.unlink()
    found = inputs_of(images, incomplete="drop")
    assert [c.name for c in found.categories] == ["Ankle boot"]
    assert "Trouser (5 of 6 in val)" in found.notes[0]
    shutil.rmtree(images / "train" / "Ankle boot")
    with pytest.raises(InputError, match="no category has images enough"):
        inputs_of(images, incomplete="drop")


def test_categories_by_rank_keep_their_units_where_one_is_dropped(tmp_path):
    """Dropped before folders are counted, it would shift those after it by one unit."""
    names = [f"k{i}" for i in range(10)]
    for part, count in (("train", 1), ("val", 6)):
        for name, category in zip(names, CATEGORIES, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            for file in sorted((IMAGES / part / category).glob("*.png"))[:count]:
                shutil.copy(file, tmp_path / part / name / file.name)
    shutil.rmtree(tmp_path / "val" / "k3")
    found = inputs_of(tmp_path, incomplete="drop")
    assert found.mapping.rule.startswith("by rank")
    assert [(c.index, c.folder) for c in found.categories] == [
        (i, f"k{i}") for i in range(10) if i != 3
    ]


# --- keys, processes, places ----------------------------------------------------------------------


def test_units_have_one_key_however_images_are_kept_and_another_by_decoder(images, tmp_path):
    pytest.importorskip("torchcodec.decoders", exc_type=Exception)
    every = [(f"{p}/{c}/{f.name}", f.read_bytes()) for p in ("train", "val") for c in CHOSEN
             for f in files(images, p, c)]  # fmt: skip
    tar = write_tar(tmp_path / "images.tar", every)
    options = Options()
    folder, shard = (configuration(inputs_of(i), options) for i in (images, tar))
    assert folder == shard
    other = configuration(inputs_of(images, decoder="torchcodec"), Options(decoder="torchcodec"))
    assert {k for k in folder if folder[k] != other[k]} == {"decoder"}
    assert other["decoder"].startswith("torchcodec-") and folder["decoder"].startswith("pillow-")


def test_a_decoder_that_is_not_there_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    from circuitcore.inputs.images import codec

    def absent():
        raise UsageError("--decoder torchcodec: not here")

    monkeypatch.setattr(codec, "_torchcodec", absent)
    out = tmp_path / "run"
    said = call("sweep", "--decoder", "torchcodec", "--images", "none", "--out", out, code=2).stderr
    assert "--decoder torchcodec: not here" in said and not out.exists()


def test_workers_sweep_a_tar_file_named_from_where_the_run_began(images, tmp_path, monkeypatch):
    every = [(f"{p}/{c}/{f.name}", f.read_bytes()) for p in ("train", "val") for c in CHOSEN
             for f in files(images, p, c)]  # fmt: skip
    write_tar(tmp_path / "images.tar", every)
    monkeypatch.chdir(tmp_path)
    two = ["sweep", "Bag", "Trouser", *SMALL]
    call(*two, "--images", "images.tar", "--workers", "2", "--out", "tar")
    call(*two, "--images", "images", "--out", "folder")
    found, wanted = masks(tmp_path / "tar"), masks(tmp_path / "folder")
    assert found.keys() == wanted.keys() and len(found)
    assert all(np.array_equal(found[key], wanted[key]) for key in found)
    options = open_run(tmp_path / "tar").manifest["options"]
    assert options["images"] == str(tmp_path / "images.tar")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")  # fault 19
    call("evaluate", "../tar")
    call("export", "../tar", "Bag")
    rows = json.loads(
        call("extract", "../tar", "Bag", "--threshold", "0.5", "--format", "json").stdout
    )
    assert rows["run"]["folder"].startswith(str(tmp_path))
    os.chdir(tmp_path)
    run = circuitcore.open_run("tar")
    os.chdir("/")
    assert len(run) == 2 and run["Bag"].masks
