"""1: every image that is no use is named, before any work."""

import shutil

import pytest
import sweep_tiny

import circuitcore
from circuitcore.errors import InputError
from circuitcore.jobs import job


@pytest.mark.parametrize("part", ["train", "val"])
def test_all_bad_images_are_named_at_once_and_nothing_is_left(part, tiny_images, tmp_path,
                                                              monkeypatch):  # fmt: skip
    root = shutil.copytree(tiny_images, tmp_path / "images")
    model = sweep_tiny.tiny_model(root)
    bad = [root / part / name / "1.png" for name in ("left", "right")]
    bad[0].write_bytes(bad[0].read_bytes()[:60])
    bad[1].write_bytes(b"")
    monkeypatch.setattr(job, "swept_circuit", lambda *_: pytest.fail("work began"))
    options = sweep_tiny.OPTIONS | {"out": tmp_path / "run"}
    with pytest.raises(InputError, match="2 unreadable images; --max-bad N") as raised:
        circuitcore.sweep(model, root, **options)
    assert all(str(path) in str(raised.value) for path in bad)
    assert not (tmp_path / "run").exists()
