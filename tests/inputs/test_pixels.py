"""Images that cannot be decoded (rows 1 and 2 of the table of faults), and ``--max-bad``."""

import json

import pytest
from command import call
from PIL import Image

from circuitcore.bundled import IMAGES
from circuitcore.runs.folder import open_run

CATEGORIES = ("Trouser", "Bag", "Ankle boot")
SMALL = ["--scoring-images", "1", "--extraction-images", "4", "--heldout-images", "2"]
SMALL += ["--levels", "0,0.5", "--device", "cpu"]


def truncated(file):
    Image.open(file).resize((200, 200)).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:700])


SPOILED = {
    "truncated": truncated,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no image"),
}


@pytest.fixture
def images(tmp_path):
    """Three categories, one image more than is needed in train and two more in val."""
    root = tmp_path / "images"
    for part, count in (("train", 2), ("val", 8)):
        for name in CATEGORIES:
            (root / part / name).mkdir(parents=True)
            for file in sorted((IMAGES / part / name).glob("*.png"))[:count]:
                (root / part / name / f"{file.stem}.jpg").write_bytes(file.read_bytes())
    return root


def sweep(root, out, *options, code=0):
    return call("sweep", "--images", root, *SMALL, "--out", out, *options, code=code)


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("part", ["train", "val"])
def test_refused_or_replaced_by_the_next_ones(images, tmp_path, kind, part):
    bad = sorted((images / part / "Bag").iterdir())[0]
    SPOILED[kind](bad)
    said = sweep(images, tmp_path / "refused", code=3).stderr
    assert f"{bad}: not a readable image" in said and "--max-bad N" in said
    said = sweep(images, tmp_path / "run", "--max-bad", 1).stderr
    assert "1 unreadable images left out" in said
    (listed,) = json.loads((tmp_path / "run" / "quarantine" / "images.json").read_text())
    assert listed["path"] == bad.relative_to(images).as_posix()
    assert "not a readable image" in listed["error"]
    bad.unlink()  # the same images, and so the same run
    again = sweep(images, tmp_path / "run").stderr
    assert "3 of 3 categories are done already" in again


def test_all_are_listed_where_they_are_too_many(images, tmp_path):
    bad = [sorted((images / "val" / name).iterdir())[1] for name in CATEGORIES]
    for file in bad:
        file.write_bytes(b"")
    said = sweep(images, tmp_path / "run", "--max-bad", 2, code=3).stderr
    assert "3 unreadable images, --max-bad allows 2" in said
    assert all(f"  {file}: not a readable image" in said for file in bad)
    assert not (tmp_path / "run").exists()


def test_a_replacement_is_tried_too_and_too_few_are_refused(images, tmp_path):
    files = sorted((images / "val" / "Bag").iterdir())
    for file in (files[0], files[6]):  # the first, and the one that takes its place
        file.write_bytes(b"")
    sweep(images, tmp_path / "run", "--max-bad", 5)
    assert len(json.loads((tmp_path / "run" / "quarantine" / "images.json").read_text())) == 2
    files[1].write_bytes(b"")
    said = sweep(images, tmp_path / "few", "--max-bad", 5, code=3).stderr
    assert (
        "val/Bag: 5 images beside 3 unreadable or repeated, 4 for extraction + 2 held out" in said
    )


def test_workers_leave_out_the_same(images, tmp_path):
    sorted((images / "val" / "Bag").iterdir())[2].write_bytes(b"")
    sweep(images, tmp_path / "run", "--max-bad", 1, "--workers", 2)
    assert len(open_run(tmp_path / "run").units()) == 3
