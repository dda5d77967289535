"""The masked linear kernel's tiles against the equation in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_layers import close, doubles, poison_new_tensors
from masked_layers import linear_problem as problem

from circuitcore.kernels.masked_linear.operation import masked_chain, masked_linear
from circuitcore.kernels.masked_linear.reference import (
    masked_chain_reference,
    masked_linear_reference,
)

EDGES = (1, 15, 16, 17, 31, 33, 63, 65, 129)


def check(got, x, weight, level, ts, bias, relu):
    assert got.dtype == x.dtype
    close(got, masked_linear_reference(*doubles(x, weight, level, ts, bias), relu=relu))


@settings(deadline=None, max_examples=10)
@given(
    n=st.sampled_from(EDGES),
    i=st.sampled_from(EDGES),
    o=st.sampled_from(EDGES),
    levels=st.integers(1, 6),
    relu=st.booleans(),
    with_bias=st.booleans(),
    per_level=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_float64(n, i, o, levels, relu, with_bias, per_level, half, seed):
    dtype = torch.float16 if half else torch.float32
    x, weight, level, ts, bias = problem(n, i, o, levels, seed, dtype, per_level)
    bias = bias if with_bias else None
    got = masked_linear(x, weight, level, ts, bias, relu=relu, impl="triton")
    check(got, x, weight, level, ts, bias, relu)


def test_pruned_nan_and_kept_nan():
    x, weight, level, _, bias = problem(20, 70, 40, 1)
    ts = [3, 0, 6, 255]
    poisoned = torch.where(level > 3, weight, torch.nan)
    want = masked_linear_reference(x, weight, level, [3, 6, 255], bias, relu=True)
    got = masked_linear(x, poisoned, level, [3, 6, 255], bias, relu=True, impl="triton")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    level[5, 6], weight[5, 6] = 4, torch.nan  # kept at 0 and 3: through the ReLU it stays NaN
    got = masked_linear(x, weight, level, ts, bias, relu=True, impl="triton")
    assert got[:, :, 5].isnan().all(1).tolist() == [True, True, False, False]
    assert not got[:, :, :5].isnan().any()


def test_non_finite_inputs_reach_only_kept_weights():
    x, weight, level, ts, bias = problem(6, 40, 30, 3)
    x[1, 7], x[2, 8] = torch.nan, torch.inf
    want = masked_linear_reference(x, weight, level, ts, bias, relu=False)
    got = masked_linear(x, weight, level, ts, bias, relu=False, impl="triton")
    torch.testing.assert_close(got, want, equal_nan=True)


def test_all_kept_all_pruned():
    x, weight, _, _, bias = problem(9, 33, 20, 1)
    level = torch.full(weight.shape, 3, dtype=torch.uint8)
    got = masked_linear(x, weight, level, [3, 0, 255], bias, relu=True, impl="triton")
    torch.testing.assert_close(got[1], torch.relu(x @ weight.T + bias), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[0], torch.relu(bias).expand(9, 20))
    assert torch.equal(got[2], got[0])


def test_every_element_of_the_output_is_written(monkeypatch):
    x, weight, level, ts, bias = problem(33, 40, 65, 5)
    poison_new_tensors(monkeypatch)
    got = masked_linear(x, weight, level, ts, bias, relu=False, impl="triton")
    monkeypatch.undo()
    check(got, x, weight, level, ts, bias, False)


def test_non_contiguous_inputs():
    x, weight, level, ts, bias = problem(33, 40, 24, 4)
    args = (
        x.T.contiguous().T,
        torch.cat([weight, weight], 1)[:, :40],
        level.repeat_interleave(2, 1)[:, ::2],
        ts,
        bias.repeat_interleave(3)[::3],
    )
    check(masked_linear(*args, relu=True, impl="triton"), x, weight, level, ts, bias, True)


def test_chain():
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(9, 50, generator=gen)
    layers = []
    for a, b in ((50, 40), (40, 30), (30, 1)):
        weight = torch.randn(b, a, generator=gen) / a**0.5
        level = (torch.rand(b, a, generator=gen) * 8).to(torch.uint8)
        layers.append((weight, level, torch.randn(b, generator=gen), b > 1))
    got = masked_chain(x, layers, [0, 2, 5], impl="triton")
    want = masked_chain_reference(x, layers, [0, 2, 5])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
