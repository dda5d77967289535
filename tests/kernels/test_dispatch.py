"""Dispatch and its cost model: pure choices, forced ones, and the table that overrides them."""

from __future__ import annotations

import json

import pytest
import torch

from circuitcore.kernels import dispatch
from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked import cost
from circuitcore.kernels.masked.cost import MaskedShape
from circuitcore.kernels.masked.paths import masked_path, table_key, tuned


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path))
    tuned.cache_clear()
    yield tmp_path
    tuned.cache_clear()


def test_a_cpu_tensor_takes_the_operations_own_choice():
    x = torch.zeros(1)
    assert choose("auto", x) == "torch"
    assert choose("auto", x, cpu="numba") == "numba"
    assert choose("torch", x, cpu="numba") == "torch"


@pytest.mark.parametrize("impl", ["", "cuda", "triton:wild", "torch:plain", "auto:packed"])
def test_unknown_names_are_refused(impl):
    with pytest.raises(ValueError, match="one of"):
        choose(impl, torch.zeros(1))


@pytest.mark.parametrize("impl", ["triton", "triton:plain", "triton:packed"])
def test_triton_on_the_cpu_needs_the_interpreter(impl, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="GPU|Triton"):
        choose(impl, torch.zeros(1))


def test_forced_paths(cache_folder):
    shape = MaskedShape(32, 64, 4096, 9216)
    assert masked_path("masked_linear", shape, "sm_90", "triton:packed") == "packed"
    assert masked_path("masked_linear", shape, "sm_90", "triton:plain") == "plain"
    assert masked_path("masked_linear", shape, "sm_90", "torch") == "library"
    assert masked_path("masked_linear", MaskedShape(4, 8, 8, 8, "float64"), "sm_90") == "library"
    assert masked_path("masked_linear", shape, "sm_90", "triton") != "library"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "unheard_of"])
def test_the_model_follows_the_roofline(arch, cache_folder):
    """Few images: memory binds and one read of the weights wins.  Many: the library's rate does,
    unless little is kept, which only the packed prefix turns into less work."""
    few, many = (
        MaskedShape(32, 16, 4096, 9216, "float16"),
        MaskedShape(32, 4096, 4096, 9216, "float16"),
    )
    assert masked_path("masked_linear", few, arch, kept=0.5) == "plain"
    assert masked_path("masked_linear", many, arch, kept=0.5) == "library"
    assert masked_path("masked_linear", many, arch, kept=0.001) == "packed"


def test_a_measured_table_overrides_the_model(cache_folder):
    shape = MaskedShape(32, 16, 4096, 9216, "float16")
    key = table_key("masked_linear", shape, "sm_90")
    (cache_folder / "tuned.json").write_text(json.dumps({"paths": {key: "library"}}))
    assert masked_path("masked_linear", shape, "sm_90") == "library"
    assert masked_path("masked_linear", shape, "sm_80") == "plain"
    assert masked_path("masked_linear", shape, "sm_90", "triton") == "plain"


@pytest.mark.parametrize("text", ["", "[]", '{"paths": 3}', '{"paths": {"a": "magic"}}', "{nan"])
def test_a_broken_table_is_no_table(cache_folder, text):
    (cache_folder / "tuned.json").write_text(text)
    assert tuned() == {}


def test_shapes_of_a_size_share_an_entry():
    near = table_key("masked_linear", MaskedShape(30, 900, 4096, 9216), "sm_90")
    assert near == table_key("masked_linear", MaskedShape(32, 1000, 4096, 9216), "sm_90")
    for other in (MaskedShape(32, 64, 4096, 9216), MaskedShape(32, 1000, 4096, 9216, "float16")):
        assert near != table_key("masked_linear", other, "sm_90")


def test_the_cpu_takes_the_sparse_product_only_where_it_is_sparse():
    dense = 4096 * 4096
    assert cost.cpu_path(4096, 4096, dense, 1000) == "dense"
    assert cost.cpu_path(4096, 4096, dense // 100, 1000) == "sparse"
    assert cost.cpu_path(4096, 4096, dense // 100, 1000, sparse=False) == "dense"
    assert [cost.batch_tile(n) for n in (1, 16, 17, 64, 65, 5000)] == [16, 16, 32, 64, 128, 128]


def test_the_choice_reads_no_device(monkeypatch, cache_folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 / 0)
    masked_path("masked_linear", MaskedShape(4, 16, 64, 64), "sm_90")
    assert dispatch.architecture(torch.device("cpu")) == "sm_90"
