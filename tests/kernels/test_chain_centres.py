"""Chains whose inputs have a centre taken off: a pruned weight multiplies that centre instead.

With a bias b + W c it does at every level what the definition says in float64, on every path.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_layers import chain_problem, linear_problem

from circuitcore.kernels.masked import cost
from circuitcore.kernels.masked_linear.operation import (
    chain_survey,
    compacted_chain,
    masked_chain,
    masked_chain_plan,
)

TS = [0, 1, 2, 3, 5, 8, 11, 12]


def defined(x, layers, ts, centres):
    """By its definition, float64 [T, N, O]: weights that are pruned read the centre."""
    found = []
    for t in ts:
        h = x.double()
        for (weight, level, bias, relu), centre in zip(layers, centres, strict=True):
            weight, centre = weight.double(), centre.double()
            kept = level > t
            h = h @ (weight * kept).T + (weight * ~kept) @ centre
            h = h if bias is None else h + bias.double()
            h = h.clamp(min=0) if relu else h
        found.append(h)
    return torch.stack(found)


def centred(n, sizes, seed=0, dtype=torch.float32):
    """x, layers as the definition has them and as the call takes them, centres."""
    x, layers = chain_problem(n, sizes, seed, dtype)
    gen = torch.Generator().manual_seed(seed + 1)
    centres = [torch.rand(a, generator=gen) for a in sizes[:-1]]
    folded = []
    for (weight, level, bias, relu), centre in zip(layers, centres, strict=True):
        own = 0 if bias is None else bias.float()
        folded.append((weight, level, (own + weight.float() @ centre).to(dtype), relu))
    return x, layers, folded, centres


@pytest.mark.parametrize("impl", ["torch", "auto", "numba"])
@pytest.mark.parametrize("sizes", [(40, 1), (40, 30, 1), (64, 33, 17, 1), (20, 13, 16, 5, 3)])
@pytest.mark.parametrize("n", [1, 40])
def test_a_pruned_weight_reads_the_centre(impl, sizes, n):
    x, layers, folded, centres = centred(n, sizes, seed=n)
    want = defined(x, layers, TS, centres)
    got = masked_chain(x, folded, TS, impl=impl, centres=centres)
    want = want[..., 0] if sizes[-1] == 1 else want
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["sparse", "dense", "mixed"])
@pytest.mark.parametrize("n", [1, 40, 300])
def test_every_cpu_path(monkeypatch, path, n):
    """Forced sparse, forced dense, and changing between them; as many multiply-adds as without."""
    calls = iter(range(10**6))

    def forced(rows, columns, nonzeros, batch, *, sparse=True):
        return path if path != "mixed" else ("sparse", "dense", "sparse")[next(calls) % 3]

    monkeypatch.setattr(cost, "cpu_path", forced)
    x, layers, folded, centres = centred(n, (700, 600, 300, 1))
    counted = []
    got = masked_chain(x, folded, TS, impl="numba", centres=centres, count=counted.append)
    want = defined(x, layers, TS, centres)[..., 0]
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    survey = chain_survey(x, layers, "numba")
    calls = iter(range(10**6))
    planned = masked_chain_plan(layers, TS, n, survey)
    assert sum(step.multiply_adds for step in planned) == sum(counted)


@pytest.mark.parametrize("impl", ["torch", "numba"])
@settings(deadline=None, max_examples=15)
@given(
    n=st.sampled_from((1, 17, 40)),
    inputs=st.integers(1, 9),
    copies=st.integers(1, 12),
    spread=st.booleans(),
    seed=st.integers(0, 99),
)
def test_copies_of_an_input_have_its_centre(impl, n, inputs, copies, spread, seed):
    source = torch.arange(inputs).repeat_interleave(copies)
    gen = torch.Generator().manual_seed(seed)
    if spread:  # not in runs
        source = source[torch.randperm(len(source), generator=gen)]
    _, weight, level, ts, bias = linear_problem(n, len(source), 11, 5, seed)
    _, second, level2, _, _ = linear_problem(n, 11, 1, 5, seed + 1)
    x = torch.randn(n, inputs, generator=gen)
    centres = [torch.randn(inputs, generator=gen)[source], torch.rand(11, generator=gen)]
    layers = [(weight, level, bias, True), (second, level2, None, False)]
    folded = [
        (weight, level, bias + weight @ centres[0], True),
        (second, level2, second @ centres[1], False),
    ]
    got = masked_chain(x, folded, ts, impl=impl, source=source, centres=centres)
    want = defined(x[:, source], layers, ts, centres)[..., 0]
    assert (got - want).abs().max() <= 2e-5 * (1 + want.abs().max())


@pytest.mark.parametrize("t", [0, 1, 4, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_a_compacted_chain_has_the_centres_in_its_biases(t, biased):
    x, layers, folded, centres = centred(20, (90, 80, 70, 3))
    if not biased:  # of a chain on centred inputs alone
        folded = [(w, v, None, r) for w, v, _, r in folded]
        layers = [(w, v, -(w @ c), r) for (w, v, _, r), c in zip(layers, centres, strict=True)]
    for some in (layers, folded):  # units that do not vary, and unread ones
        some[0][1][:30], some[1][1][:, 10:20] = 2, 0
    small = compacted_chain(folded, t, centres)
    h = x.double()
    for (weight, bias), (*_, relu) in zip(small, layers, strict=True):
        h = torch.nn.functional.linear(h, weight.double(), bias.double())
        h = torch.relu(h) if relu else h
    want = defined(x, layers, [t], centres)[0]
    order = [int((want - h[:, i : i + 1]).abs().sum(0).argmin()) for i in range(h.shape[1])]
    torch.testing.assert_close(h, want[:, order], rtol=1e-4, atol=1e-4)
    varying = (want != want[0]).any(0).nonzero().flatten().tolist()
    assert set(varying) <= set(order) and len(order) == len(set(order))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    """Within what the weights' own rounding is worth."""
    x, layers, folded, centres = centred(20, (90, 80, 1), dtype=dtype)
    got = masked_chain(x, folded, TS, centres=centres)
    want = defined(x, layers, TS, centres)[..., 0]
    assert got.dtype == dtype
    near = {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert (got.double() - want).abs().max() <= near * (1 + want.abs().max())


@pytest.mark.parametrize("impl", ["torch", "numba"])
def test_infinities_that_only_pruned_weights_read_stay_out(impl):
    x, layers, folded, centres = centred(12, (50, 40, 1))
    layers[0][1][:, 7] = 3  # the levels are the same tensors in both
    x[2, 7] = torch.inf
    got = masked_chain(x, folded, [4, 9], impl=impl, centres=centres)
    x[2, 7] = 0
    want = masked_chain(x, folded, [4, 9], impl=impl, centres=centres)
    assert got.isfinite().all()
    torch.testing.assert_close(got, want)
