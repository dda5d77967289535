"""7: an image that goes while it is used, and files that no one would ever finish to read."""

import json
import os
import shutil

import pytest
import sweep_tiny

import circuitcore
from circuitcore.errors import InputError, PartialError
from circuitcore.inputs.pixels import Preprocessing, decode
from circuitcore.jobs import job


def test_one_that_goes_in_mid_run_fails_its_unit_and_no_other(tiny_images, tmp_path, monkeypatch):
    root = shutil.copytree(tiny_images, tmp_path / "images")
    model, own = sweep_tiny.tiny_model(root), job.commit

    def commit(run, found):  # after the first one is done, the second one's image is gone
        own(run, found)
        (root / "train" / "middle" / "0.png").unlink(missing_ok=True)

    monkeypatch.setattr(job, "commit", commit)
    options = sweep_tiny.OPTIONS | {"out": tmp_path / "run"}
    with pytest.raises(PartialError, match=r"1 of 3 categories failed:\n.*0\.png") as raised:
        circuitcore.sweep(model, root, **options)
    assert raised.value.exit_code == 4 and "middle" in str(raised.value)
    assert list(circuitcore.open_run(tmp_path / "run")) == ["left", "right"]
    (failed,) = (tmp_path / "run" / "failed").iterdir()
    assert json.loads(failed.read_text())["category"] == "middle"
    shutil.copy(tiny_images / "train" / "middle" / "0.png", root / "train" / "middle")
    run = circuitcore.sweep(model, root, **options)
    assert list(run) == ["left", "middle", "right"] and run.verify() == []
    assert not failed.exists()


@pytest.mark.parametrize("kind", ["a pipe", "an endless device", "a folder", "a link to nothing"])
def test_special_files_are_refused_at_once(kind, tmp_path):
    path = tmp_path / "image.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "an endless device" else tmp_path / "nothing")
    with pytest.raises(InputError, match=r"image\.png: cannot be read"):
        decode(path, Preprocessing(None, None, (0.5,), (0.2,), 1))
