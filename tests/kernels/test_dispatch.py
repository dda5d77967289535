"""Dispatch and its cost model: pure choices, forced ones, and the table that overrides them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from circuitcore.kernels import dispatch, selftest, tune
from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked import cost
from circuitcore.kernels.masked.gpu_cost import DEVICES, MaskedShape, cheapest, gpu_seconds
from circuitcore.kernels.masked.paths import masked_path, table_key, tuned
from circuitcore.kernels.masked_linear import operation
from circuitcore.kernels.masked_linear.operation import sweep_shapes


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


@pytest.mark.parametrize("impl", ["", "cuda", "triton:plain", "fused"])
def test_unknown_names_are_refused(impl):
    with pytest.raises(ValueError, match="one of"):
        choose(impl, torch.zeros(1))


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="GPU|Triton"):
        choose("triton", torch.zeros(1))


def test_forced_paths(cache_folder):
    shape = MaskedShape(31, 1000, 4096, 9216, "tf32")
    assert masked_path(shape, "sm_90", "triton") == "fused"
    assert masked_path(shape, "sm_90", "torch") == "library"
    for dtype in ("float32", "float64"):  # in full: no kernel
        for impl in ("auto", "triton"):
            assert masked_path(replace(shape, dtype=dtype), "sm_90", impl) == "library"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942", "unheard_of"])
def test_the_model_follows_the_roofline(arch, cache_folder):
    """Few images at many levels: one read of the weights wins over a masked copy a level; a single
    row, or a batch that fills tiles by half, executes too much."""
    shape = MaskedShape(31, 128, 4096, 9216, "float16")
    assert masked_path(shape, arch) == "fused"
    assert gpu_seconds("library", shape, arch) > 1.5 * gpu_seconds("fused", shape, arch)
    assert masked_path(replace(shape, rows=1), arch) == "library"
    assert masked_path(replace(shape, batch=64), arch) == "library"
    # what the library moves goes up with the levels, and the launches with it
    one = gpu_seconds("library", replace(shape, levels=1), arch)
    assert gpu_seconds("library", shape, arch) == pytest.approx(31 * one)


LINEAR_SWEEPS = [
    MaskedShape(levels, batch, rows, columns, dtype, shared=shared)
    for rows, columns, shared in (
        (4096, 9216, True), (4096, 25088, True), (4096, 4096, False),
        (1, 4096, False), (1, 2048, True), (1, 1280, True),
    )
    for levels in (1, 8, 31)
    for batch in (16, 100, 128, 200, 256, 300, 384, 512, 1000, 1024)
    for dtype in ("float32", "tf32", "bfloat16", "float16")
]  # fmt: skip


@pytest.mark.parametrize("arch", sorted(DEVICES))
def test_no_chosen_path_executes_much_more_than_is_needed(arch, cache_folder):
    """AlexNet's, VGG16's, ResNet-50's and MobileNetV2's fully connected layers."""
    chosen = Counter()
    for shape in LINEAR_SWEEPS:
        path = masked_path(shape, arch)
        chosen[path] += 1
        if path == "fused":
            assert shape.executed(path, arch) <= 1.3 * shape.needed(), shape
            assert gpu_seconds(path, shape, arch) <= gpu_seconds("library", shape, arch)
    assert chosen["fused"] and chosen["library"]
    # what the fully connected stage of AlexNet asks for in low precision runs fused
    for shape in sweep_shapes(tune.NETWORKS[0][:2], (31,), (128, 1000), ("bfloat16",)):
        assert masked_path(shape, "sm_90") == "fused", shape


def test_a_measured_table_overrides_the_model(cache_folder):
    shape = MaskedShape(32, 128, 4096, 9216, "float16")
    key = table_key(shape, "sm_90")
    (cache_folder / "tuned.json").write_text(json.dumps({"paths": {key: "library"}}))
    assert masked_path(shape, "sm_90") == "library"
    assert masked_path(shape, "sm_80") == "fused"
    assert masked_path(shape, "sm_90", "triton") == "fused"


def test_tuning_covers_every_launch_of_a_sweep(cache_folder, monkeypatch):
    """Measured as the slower path, each launch of a sweep takes it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(tune, "architecture", lambda device: "sm_90")
    passed = selftest.Outcome("masked_linear", "", "", "passed", "")
    monkeypatch.setattr(selftest, "check", lambda device, shown: [passed])
    monkeypatch.setattr(tune, "_linear", lambda shape, device: shape)
    other = {"fused": "library", "library": "fused"}
    monkeypatch.setattr(tune, "fastest", lambda shape: other[cheapest(shape, "sm_90")])
    before = torch.backends.cuda.matmul.fp32_precision
    table = tune.tune()
    assert torch.backends.cuda.matmul.fp32_precision == before
    for layers in tune.NETWORKS:
        for shape in sweep_shapes(layers, range(1, 33), (9, 16, 100, 256, 257, 1000, 1024)):
            assert masked_path(shape, "sm_90") == table[table_key(shape, "sm_90")]
    for shape in tune.swept():
        assert masked_path(shape, "sm_90") != cheapest(shape, "sm_90")


def test_a_chain_launches_the_shapes_a_sweep_is_said_to(cache_folder, monkeypatch):
    """Seen at the choice itself: shapes and paths of a chain on what stands for a GPU."""
    asked = []

    def path(shape, arch, impl):
        asked.append(shape)
        return "library"

    monkeypatch.setattr(operation, "choose", lambda impl, x, **_: "triton")
    monkeypatch.setattr(operation, "masked_path", path)
    x, layers = torch.zeros(7, 12), []
    for rows, columns in ((10, 12), (9, 10), (1, 9)):
        weight = torch.zeros(rows, columns)
        layers.append((weight, weight.to(torch.uint8), None, True))
    operation.masked_chain(x, layers, [0, 1, 2])
    assert asked == sweep_shapes([(10, 12), (9, 10), (1, 9)], (3,), (7,), ("tf32",))


@pytest.mark.parametrize("text", ["", "[]", '{"paths": 3}', '{"paths": {"a": "magic"}}', "{nan"])
def test_a_broken_table_is_no_table(cache_folder, text):
    (cache_folder / "tuned.json").write_text(text)
    assert tuned() == {}


def test_shapes_of_a_size_share_an_entry():
    near = table_key(MaskedShape(30, 900, 4096, 9216), "sm_90")
    assert near == table_key(MaskedShape(32, 1000, 4096, 9216), "sm_90")
    for other in (MaskedShape(32, 64, 4096, 9216), MaskedShape(32, 1000, 4096, 9216, "float16")):
        assert near != table_key(other, "sm_90")


def test_the_cpu_takes_the_sparse_product_only_where_it_is_sparse():
    dense = 4096 * 4096
    assert cost.cpu_path(4096, 4096, dense, 1000) == "dense"
    assert cost.cpu_path(4096, 4096, dense // 100, 1000) == "sparse"
    assert cost.cpu_path(4096, 4096, dense // 100, 1000, sparse=False) == "dense"
    assert [cost.batch_tile(n) for n in (1, 16, 17, 64, 65, 5000)] == [16, 16, 32, 64, 128, 128]


def test_the_choice_reads_no_device(monkeypatch, cache_folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 / 0)
    masked_path(MaskedShape(4, 16, 64, 64), "sm_90")
    assert dispatch.architecture(torch.device("cpu")) == "sm_90"
