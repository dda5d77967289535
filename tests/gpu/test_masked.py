"""Masked layers on a device: every variant and dtype against the equation in float64."""

import pytest
import torch
from masked_layers import close, conv_problem, doubles, linear_problem

from circuitcore.kernels import tune
from circuitcore.kernels.first_conv.operation import first_conv
from circuitcore.kernels.masked.gpu_cost import MaskedShape
from circuitcore.kernels.masked.paths import masked_path, tuned
from circuitcore.kernels.masked_conv2d.operation import masked_conv2d
from circuitcore.kernels.masked_conv2d.reference import masked_conv2d_reference
from circuitcore.kernels.masked_linear.operation import masked_chain, masked_linear
from circuitcore.kernels.masked_linear.reference import masked_linear_reference

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def on_gpu(problem):
    return [part.cuda() if isinstance(part, torch.Tensor) else part for part in problem]


@pytest.mark.parametrize("impl", ["auto", "torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 33, 65), (128, 256, 192), (300, 1000, 129)])
@pytest.mark.parametrize("relu", [False, True])
def test_linear(impl, dtype, per_level, shape, relu):
    x, weight, level, ts, bias = on_gpu(linear_problem(*shape, 6, sum(shape), dtype, per_level))
    poisoned = torch.where(level > min(ts), weight, torch.nan)
    want = masked_linear_reference(*doubles(x, weight, level, ts, bias), relu=relu)
    got = masked_linear(x, poisoned, level, ts, bias, relu=relu, impl=impl)
    assert got.dtype == dtype
    close(got, want)
    again = masked_linear(x, poisoned, level, ts, bias, relu=relu, impl=impl)
    assert torch.equal(got, again)


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        {"io": (3, 64), "size": 35, "kernel": 11, "stride": 4, "padding": 2},
        {"io": (64, 192), "size": 13, "kernel": 5, "padding": 2},
        {"io": (48, 66), "size": 9, "kernel": 3, "groups": 3, "dilation": 2},
        {"io": (32, 32), "size": 8, "kernel": 3, "groups": 32, "padding": 1},
    ],
)
def test_conv(impl, dtype, per_level, layer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    groups = layer.get("groups", 1)
    options = {
        name: (layer.get(name, default),) * 2
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    x, weight, level, ts, bias = on_gpu(
        conv_problem(
            4, *layer["io"], (layer["size"],) * 2, (layer["kernel"],) * 2, groups, 5,
            dtype=dtype, per_level=per_level,
        )
    )  # fmt: skip
    want = masked_conv2d_reference(
        *doubles(x, weight, level, ts, bias), groups=groups, relu=True, **options
    )
    poisoned = torch.where(level > min(ts), weight, torch.nan)
    got = masked_conv2d(
        x, poisoned, level, ts, bias, groups=groups, relu=True, impl=impl, **options
    )
    assert got.dtype == dtype
    close(got, want)


def test_non_finite_inputs_reach_only_kept_weights():
    x, weight, level, ts, bias = on_gpu(linear_problem(8, 40, 30, 4))
    x[1, 7], x[2, 8] = torch.nan, torch.inf
    want = masked_linear_reference(x, weight, level, ts, bias, relu=False)
    got = masked_linear(x, weight, level, ts, bias, relu=False, impl="triton")
    torch.testing.assert_close(got, want, equal_nan=True)


def test_compiles_whole():
    x, weight, level, ts, bias = on_gpu(linear_problem(64, 128, 96, 4))

    def run(x):
        return masked_linear(x, weight, level, ts, bias, relu=True).sum(0)

    torch.testing.assert_close(torch.compile(run, fullgraph=True)(x), run(x))


def test_tuning_writes_a_table_that_the_dispatch_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("CIRCUITCORE_CACHE", str(tmp_path))
    tuned.cache_clear()
    shape = MaskedShape(8, 64, 256, 512, "float16")
    written = tune.tune([shape])
    tuned.cache_clear()
    (key, path), *_ = written.items()
    assert masked_path(shape, key.split("/")[0]) == path
    tuned.cache_clear()


@pytest.mark.parametrize("images", [100, 128, 300])
@pytest.mark.parametrize("per_level", [False, True])
def test_tf32(images, per_level, monkeypatch):
    """The kernel's error against float64 is at most twice the library's in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    problem = on_gpu(linear_problem(images, 1000, 300, 5, per_level=per_level))
    want = masked_linear_reference(*doubles(*problem), relu=True)
    fused, library = (
        (masked_linear(*problem, relu=True, impl=impl) - want).abs().max()
        for impl in ("triton", "torch")
    )
    assert fused <= 2 * library + 1e-6


def test_a_chain_waits_for_nothing():
    x, weight, level, ts, bias = on_gpu(linear_problem(128, 512, 256, 8, dtype=torch.bfloat16))
    layers = [(weight, level, bias, True), (weight[:1, :256], level[:1, :256], None, False)]
    want = masked_chain(x, layers, ts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = masked_chain(x, layers, ts, check=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("taps", "stride", "padding"), [(11, 4, 2), (3, 1, 1), (7, 2, 3)])
def test_first_conv_in_a_graph(dtype, taps, stride, padding, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, device="cuda")
    weight = torch.randn(32, 3, taps, taps, device="cuda").to(dtype) / taps
    index = torch.tensor([5, 0, 3], device="cuda")
    options = {
        "mean": torch.full((3,), 0.45, device="cuda"), "std": torch.full((3,), 0.22, device="cuda"),
        "index": index, "stride": (stride,) * 2, "padding": (padding,) * 2, "relu": True,
    }  # fmt: skip
    want = first_conv(pixels.cpu(), weight.cpu().double(), **{
        name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in options.items()
    })  # fmt: skip
    first_conv(pixels, weight, **options)  # compiles, and lets the library choose
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = first_conv(pixels, weight, **options)
    graph.replay()
    assert got.is_contiguous(memory_format=torch.channels_last)
    close(got.cpu(), want)
