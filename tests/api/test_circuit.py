"""Objects in a calling program: what is asked of a circuit, and several threads at once."""

import threading

import numpy as np
import pytest
from command import masks
from torch import nn

import circuitcore
from circuitcore.errors import InputError

FEW = {"scoring_images": 1, "extraction_images": 4, "heldout_images": 2, "levels": "0,0.5",
       "device": "cpu"}  # fmt: skip


def test_a_layer_without_a_mask_is_named_with_the_nearest(small):
    found = circuitcore.open_run(small.folder)["Bag"].masks
    assert set(found) == set(dict(found)) and "features.0" in found
    with pytest.raises(KeyError, match="no mask of a layer 'feature.0'; did you mean 'features.0'"):
        found["feature.0"]
    assert found.get("feature.0") is None


def test_names_of_a_model_in_hand_tell_units_apart():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(InputError, match="categories: 'b' is there more than once"):
        circuitcore.Model.of(module, None, ["a", "b", "b"])


def test_two_threads_may_sweep_into_one_folder(tmp_path):
    failed = []

    def sweep(name):
        try:
            circuitcore.sweep(categories=["Bag", "Coat"], out=tmp_path / name, **FEW)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=sweep, args=("two",)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed
    sweep("one")
    found, wanted = masks(tmp_path / "two"), masks(tmp_path / "one")
    assert found.keys() == wanted.keys() and len(found)
    assert all(np.array_equal(found[key], wanted[key]) for key in found)
    assert circuitcore.open_run(tmp_path / "two").verify() == []
