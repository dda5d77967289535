"""AlexNet's fully connected stage (fc6, fc7, the target row) at all levels of the default grid.

Masks follow from scores as the method makes them, ranked jointly by `assign_levels`: the factors
X and G are drawn as a ReLU network's are (4 images, about 70 % zeros, units of unequal strength),
so that surviving rows and columns cluster and two thirds of the weights tie at score zero.  They
are not those of a trained network.
"""

from functools import cache

import numpy as np
import pytest
import torch

from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels
from circuitcore.kernels.masked_linear.operation import (
    chain_survey,
    masked_chain,
    masked_chain_plan,
    masked_linear,
)

SIZES = (9216, 4096, 4096, 1)
LEVELS = 32
OVER_MULTIPLY, OVER_ZERO = 5, 3  # targets for 1,000 images on two cores, float32
OVER_MULTIPLY_BFLOAT16 = 12


def relu_sparse(images: int, units: int, gen: torch.Generator, zeros: float = 0.7) -> torch.Tensor:
    values = torch.randn(images, units, generator=gen)
    return (values - values[:, :4096].quantile(zeros)).clamp(min=0)


@cache
def stage(device: torch.device):
    """(x [1000, 9216], layers, levels): weights, level bytes, biases on ``device``, float32."""
    gen = torch.Generator().manual_seed(0)
    x = relu_sparse(1000, SIZES[0], gen)
    weights, scores = [], []
    for k, (columns, rows) in enumerate(zip(SIZES, SIZES[1:], strict=False)):
        weight = torch.randn(rows, columns, generator=gen) * (2 / columns) ** 0.5
        right = x[:4] if k == 0 else relu_sparse(4, columns, gen)
        left = torch.ones(4, 1)
        if rows > 1:
            left = relu_sparse(4, rows, gen) * torch.randn(rows, generator=gen).abs()
        top = (weight.abs() * (left.T @ right)).max()
        weights.append(weight)
        scores.append(
            LayerScores(
                weight, left=left, right=right, form="abs", offset=0.0, scale=1 / float(top)
            )
        )
    total = sum(w.numel() for w in weights)
    kept = np.geomspace(1.0, 0.001, LEVELS)
    levels = assign_levels(scores, np.round((1 - kept) * total).astype(int).tolist()).levels
    layers = [
        (w.to(device), v.to(device), (torch.randn(len(w), generator=gen) * 0.1).to(device), k < 2)
        for k, (w, v) in enumerate(zip(weights, levels, strict=True))
    ]
    return x.to(device), layers, list(range(LEVELS))


def mask_multiply(x, layers, ts):
    out = []
    for t in ts:
        h = x
        for weight, level, bias, relu in layers:
            h = torch.addmm(bias, h, (weight * (level > t)).T)
            h = h.relu_() if relu else h
        out.append(h[:, 0])
    return torch.stack(out)


def zero_in_place(x, layers, ts):
    weights = [weight.clone() for weight, *_ in layers]
    out = []
    for t in ts:
        h = x
        for weight, (_, level, bias, relu) in zip(weights, layers, strict=True):
            h = torch.addmm(bias, h, weight.masked_fill_(level <= t, 0.0).T)
            h = h.relu_() if relu else h
        out.append(h[:, 0])
    return torch.stack(out)


def stage_bytes(x: torch.Tensor, layers: list, levels: int) -> int:
    """Inputs, weights and level bytes once; each layer's result at every level."""
    results = sum(len(weight) for weight, *_ in layers) * x.shape[-2] * levels
    weights = sum(weight.numel() for weight, *_ in layers)
    return (x.numel() + weights + results) * x.element_size() + weights


def has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize("images", [16, 256, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fully_connected_stage(race, device, images, dtype):
    if dtype == "bfloat16" and not has_bfloat16(device):
        pytest.skip("this processor has no bfloat16 arithmetic")
    x, layers, ts = stage(device)
    to = getattr(torch, dtype)
    x = x[:images].to(to)
    layers = [(w.to(to), v, b.to(to), r) for w, v, b, r in layers]
    found = {}

    def keep(name, function):
        def run():
            found[name] = function(x, layers, ts)

        return run

    ours = "masked_chain (this)"
    dense = images * len(ts) * sum(w.numel() for w, *_ in layers)
    cpu = device.type == "cpu"
    survey = chain_survey(x, layers) if cpu else None
    executed = sum(s.multiply_adds for s in masked_chain_plan(layers, ts, images, survey))
    result = race(
        {
            ours: keep("ours", masked_chain),
            "mask multiply, then GEMM": keep("multiply", mask_multiply),
            "zero in place, then GEMM": keep("zero", zero_in_place),
        },
        ours=ours,
        rounds=3,
        once=("mask multiply, then GEMM", "zero in place, then GEMM") if images > 256 else (),
        note={
            "dtype": dtype,
            "shape": f"{images} images x {SIZES}, {len(ts)} levels",
            "multiply_adds": executed,
            "bytes": stage_bytes(x, layers, len(ts)),
            "multiply-adds": f"{executed / 1e9:.1f} of {dense / 1e9:.1f} thousand million",
            "target, 1,000 images": f"{OVER_MULTIPLY} x over mask multiply, {OVER_ZERO} x over zero"
            if dtype == "float32"
            else f"{OVER_MULTIPLY_BFLOAT16} x over mask multiply",
        },
    )
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    scale = found["multiply"].abs().amax(1, keepdim=True)
    assert ((found["zero"] - found["multiply"]).abs() <= tolerance * scale).all()
    assert ((found["ours"] - found["multiply"]).abs() <= tolerance * scale).all()
    assert result.ratio("mask multiply, then GEMM", ours) > 1


@pytest.mark.parametrize("images", [16, 256, 1000])
@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_one_layer(race, device, layer, images):
    """One layer at 8 of the levels, x shared (fc6) or one a level (fc7); on a GPU each kernel."""
    x, layers, ts = stage(device)
    ts = ts[::4]
    weight, level, bias, relu = layers[layer == "fc7"]
    x = x[:images, : weight.shape[1]].contiguous()
    if layer == "fc7":
        x = x.expand(len(ts), *x.shape).contiguous()
    impls = {"auto (this)": "auto", "library on masked weights": "torch"}
    if device.type == "cuda":
        impls |= {"fused": "triton"}
    found = {}

    def call(name):
        def run():
            found[name] = masked_linear(x, weight, level, ts, bias, relu=relu, impl=impls[name])

        return run

    product = weight.numel() * images * len(ts)
    note = {
        "dtype": "float32",
        "shape": f"{images} x {list(weight.shape)}, {len(ts)} levels",
        "multiply_adds": product,
        "bytes": stage_bytes(x, [layers[layer == "fc7"]], len(ts)),
    }
    race({name: call(name) for name in impls}, ours="auto (this)", rounds=3, note=note)
    want = found["library on masked weights"]
    for name in impls:
        assert ((found[name] - want).abs() <= 1e-5 * want.abs().max()).all(), name
