"""masked_linear and masked_chain: every path against the equation in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_layers import chain_problem as chain
from masked_layers import linear_problem as problem

from circuitcore.kernels.masked import cost
from circuitcore.kernels.masked.check import has_nan
from circuitcore.kernels.masked_linear import cpu as masked_linear_chain_cpu
from circuitcore.kernels.masked_linear import cpu_sparse as masked_linear_sparse_cpu
from circuitcore.kernels.masked_linear.library import masked_linear_library
from circuitcore.kernels.masked_linear.operation import (
    chain_survey,
    compacted_chain,
    masked_chain,
    masked_chain_plan,
    masked_linear,
)
from circuitcore.kernels.masked_linear.reference import (
    masked_chain_reference,
    masked_linear_reference,
)

IMPLS = ("torch", "auto", "numba")
EDGES = (1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100)


def truth(x, weight, level, ts, bias, relu):
    rows = [
        torch.einsum(
            "ni,oi->no",
            (x if x.dim() == 2 else x[k]).double(),
            torch.where(level > t, weight.double(), 0.0),
        )
        + (0 if bias is None else bias.double())
        for k, t in enumerate(ts)
    ]
    y = torch.stack(rows)
    return y.clamp(min=0) if relu else y


def agrees(got, x, weight, level, ts, bias, relu):
    """Error at most twice that of torch in the same dtype, and 1e-6 of the largest value."""
    want = truth(x, weight, level, ts, bias, relu)
    plain = masked_linear_reference(x, weight, level, ts, bias, relu=relu).double()
    allowed = 2 * (plain - want).abs().max() + 1e-6 * (1 + want.abs().max())
    assert got.shape == want.shape and got.dtype == x.dtype
    assert (got.double() - want).abs().max() <= allowed


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from(EDGES),
    i=st.sampled_from(EDGES),
    o=st.sampled_from(EDGES),
    levels=st.integers(1, 9),
    relu=st.booleans(),
    per_level=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_float64(impl, n, i, o, levels, relu, per_level, with_bias, seed):
    x, weight, level, ts, bias = problem(n, i, o, levels, seed, per_level=per_level)
    bias = bias if with_bias else None
    got = masked_linear(x, weight, level, ts, bias, relu=relu, impl=impl)
    agrees(got, x, weight, level, ts, bias, relu)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    x, weight, level, ts, bias = problem(33, 65, 17, 4, dtype=dtype)
    got = masked_linear(x, weight, level, ts, bias, relu=True)
    agrees(got, x, weight, level, ts, bias, True)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_in_pruned_weights_does_not_leak(impl):
    x, weight, level, ts, bias = problem(20, 40, 30, 5)
    ts.sort()
    clean = masked_linear(x, weight, level, ts, bias, relu=False, impl="torch")
    for k, t in enumerate(ts):
        poisoned = torch.where(level > t, weight, torch.nan)
        got = masked_linear(x, poisoned, level, ts[k:], bias, relu=False, impl=impl)
        torch.testing.assert_close(got, clean[k:])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_weight_taints_only_the_levels_that_keep_it(impl):
    x, weight, level, _, bias = problem(8, 40, 30, 1)
    level[3, 4], level[5, 6] = 2, 4
    weight[3, 4], weight[5, 6] = torch.nan, torch.inf
    got = masked_linear(x, weight, level, [0, 1, 2, 3, 4], bias, relu=False, impl=impl)
    assert got[:, :, 3].isnan().all(1).tolist() == [True, True, False, False, False]
    assert got[:, :, 5].isinf().all(1).tolist() == [True, True, True, True, False]
    assert got[4].isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_non_finite_inputs_reach_only_kept_weights(impl):
    x, weight, level, _, bias = problem(6, 40, 30, 1)
    x[1, 7], x[2, 8], x[3, 9] = torch.nan, torch.inf, -torch.inf
    ts = [0, 3, 6, 11]
    got = masked_linear(x, weight, level, ts, bias, relu=False, impl=impl)
    want = masked_linear_reference(x, weight, level, ts, bias, relu=False)
    torch.testing.assert_close(got, want, equal_nan=True)
    for k, t in enumerate(ts):
        assert torch.equal(got[k, 1].isnan(), level[:, 7] > t)
        assert torch.equal(got[k, 2].isinf(), level[:, 8] > t)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_kept_all_pruned_and_unordered_levels(impl):
    x, weight, _, _, bias = problem(9, 30, 20, 1)
    level = torch.full(weight.shape, 3, dtype=torch.uint8)
    got = masked_linear(x, weight, level, [3, 0, 255, 2], bias, relu=True, impl=impl)
    torch.testing.assert_close(got[1], torch.relu(x @ weight.T + bias))
    assert torch.equal(got[1], got[3])
    assert torch.equal(got[0], torch.relu(bias).expand(9, 20))
    assert torch.equal(got[2], got[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_non_contiguous_inputs(impl):
    x, weight, level, ts, bias = problem(33, 40, 24, 4)
    want = masked_linear_reference(x, weight, level, ts, bias, relu=True)
    args = (
        x.T.contiguous().T,
        torch.cat([weight, weight], 1)[:, :40],
        level.repeat_interleave(2, 1)[:, ::2],
        ts,
        bias.repeat_interleave(3)[::3],
    )
    torch.testing.assert_close(masked_linear(*args, relu=True, impl=impl), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_librarys_path(dtype, per_level, with_bias):
    """On finite inputs; what leaks from others is NaN, through the ReLU too."""
    x, weight, level, ts, bias = problem(20, 40, 30, 5, dtype=dtype, per_level=per_level)
    bias = bias if with_bias else None
    poisoned = torch.where(level > min(ts), weight, torch.nan)
    got = masked_linear_library(x, poisoned, level, ts, bias, relu=True)
    agrees(got, x, weight, level, ts, bias, True)
    assert not has_nan(got)
    level[3, 7] = 0
    x[..., 2, 7] = -torch.inf
    got = masked_linear_library(x, weight, level, ts, bias, relu=True)
    assert got[:, 2, 3].isnan().all() and has_nan(got)


def test_refuses_what_does_not_fit():
    x, weight, level, ts, bias = problem(4, 6, 5, 2)
    for bad in (
        (x[:, :5], weight, level, ts, bias),
        (x, weight, level.int(), ts, bias),
        (x, weight, level[:4], ts, bias),
        (x.double(), weight, level, ts, bias),
        (x, weight, level, [], bias),
        (x, weight, level, [256], bias),
        (x, weight, level, ts, bias[:3]),
        (x.expand(5, 4, 6), weight, level, ts, bias),
    ):
        with pytest.raises(ValueError):
            masked_linear(*bad, relu=False)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", [(40, 1), (40, 30, 1), (64, 33, 17, 1), (20, 13, 16, 5, 3)])
@pytest.mark.parametrize("n", [1, 16, 100])
def test_chain_equals_layer_by_layer(impl, sizes, n):
    x, layers = chain(n, sizes, seed=n)
    ts = [0, 1, 2, 3, 5, 8, 11, 12]
    want = masked_chain_reference(
        x.double(),
        [(w.double(), v, None if b is None else b.double(), r) for w, v, b, r in layers],
        ts,
    )
    got = masked_chain(x, layers, ts, impl=impl)
    assert got.shape == want.shape == ((8, n) if sizes[-1] == 1 else (8, n, sizes[-1]))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_chain_does_not_leak_nan_from_pruned_weights(impl):
    x, layers = chain(12, (50, 40, 30, 1))
    ts = [4, 6, 9]
    poisoned = [(torch.where(v > 4, w, torch.nan), v, b, r) for w, v, b, r in layers]
    torch.testing.assert_close(
        masked_chain(x, poisoned, ts, impl=impl), masked_chain_reference(x, layers, ts)
    )


@pytest.mark.parametrize("path", ["sparse", "dense", "mixed"])
@pytest.mark.parametrize("n", [1, 16, 40, 300])
@pytest.mark.parametrize("per_level", [False, True])
def test_every_cpu_path_whatever_the_cost_model_says(monkeypatch, path, n, per_level):
    """Forced sparse, forced dense, and changing between them from level to level."""
    calls = iter(range(10**6))

    def forced(rows, columns, nonzeros, batch, *, sparse=True):
        return path if path != "mixed" else ("sparse", "dense", "sparse")[next(calls) % 3]

    monkeypatch.setattr(cost, "cpu_path", forced)
    x, weight, level, _, bias = problem(n, 1100, 70, 6, per_level=per_level)
    ts = [0, 1, 2, 5, 9, 11]
    got = masked_linear(x, weight, level, ts, bias, relu=True, impl="numba")
    agrees(got, x, weight, level, ts, bias, True)
    weight[:2, :3] = torch.nan
    level[:2, :3] = 4
    want = masked_linear_reference(x, weight, level, ts, bias, relu=True)
    got = masked_linear(x, weight, level, ts, bias, relu=True, impl="numba")
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)
    if per_level:
        return
    x, layers = chain(n, (700, 600, 300, 1))
    got = masked_chain(x, layers, ts, impl="numba")
    torch.testing.assert_close(got, masked_chain_reference(x, layers, ts), rtol=1e-4, atol=1e-4)


def test_the_plan_counts_the_multiply_adds_that_run(monkeypatch):
    """Counted at the products themselves, and never more than the layers in full."""
    x, layers = chain(30, (90, 80, 70, 1))
    ts = [0, 2, 4, 8, 11]
    done = []
    gathered, add = masked_linear_chain_cpu._Runner._gathered, masked_linear_sparse_cpu.Sparse.add

    def count_gathered(self, k, t, rows, columns):
        part = columns.size and self.plan.columns(k, t) is not columns
        constants = bool(part) and not set(columns) <= set(self.plan.columns(k, t))
        done.append(rows.size * columns.size * (1 if constants else len(x)))
        return gathered(self, k, t, rows, columns)

    def count_sparse(self, bucket, tiles, out):
        done.append(int(self.pointer[bucket].max() - self.pointer[bucket].min()) * len(x))
        return add(self, bucket, tiles, out)

    monkeypatch.setattr(masked_linear_chain_cpu._Runner, "_gathered", count_gathered)
    monkeypatch.setattr(masked_linear_sparse_cpu.Sparse, "add", count_sparse)
    for price in (0.0, 4.0):
        monkeypatch.setattr(cost, "SPARSE_MULTIPLY_ADD", price)
        monkeypatch.setattr(cost, "SEGMENT", price)
        done.clear()
        counted = []
        masked_chain(x, layers, ts, impl="numba", count=counted.append)
        survey = chain_survey(x, layers, "numba")
        planned = sum(s.multiply_adds for s in masked_chain_plan(layers, ts, len(x), survey))
        assert sum(done) == sum(counted) == planned
        assert sum(done) < len(ts) * len(x) * sum(w.numel() for w, *_ in layers)


@pytest.mark.parametrize("t", [0, 1, 4, 9])
@pytest.mark.parametrize("biased", [True, False])
def test_a_compacted_chain_is_the_masked_chain(t, biased):
    x, layers = chain(20, (90, 80, 70, 3))
    x = x.double()
    layers = [(w.double(), v, b.double() if biased else None, r) for w, v, b, r in layers]
    layers[0][1][:30], layers[1][1][:, 10:20] = 2, 0  # units that do not vary, and unread ones
    h = x
    small = compacted_chain(layers, t)
    assert small is not None
    for (weight, bias), (*_, relu) in zip(small, layers, strict=True):
        assert weight.shape[1] == h.shape[1]
        h = torch.nn.functional.linear(h, weight, bias)
        h = torch.relu(h) if relu else h
    want = masked_chain_reference(x, layers, [t])[0]
    varying = (want != want[0]).any(0).nonzero().flatten().tolist()
    order = [int((want - h[:, i : i + 1]).abs().sum(0).argmin()) for i in range(h.shape[1])]
    torch.testing.assert_close(h, want[:, order])
    assert set(varying) <= set(order) and len(order) == len(set(order))


def test_a_chain_that_reads_nothing_has_no_compact_form():
    _, layers = chain(2, (9, 8, 1))
    layers[1][1][:] = 0
    assert compacted_chain(layers, 0) is None


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("surveyed", [False, True])
@settings(deadline=None, max_examples=20)
@given(
    n=st.sampled_from((1, 3, 17, 40)),
    inputs=st.integers(1, 9),
    copies=st.integers(1, 12),
    spread=st.booleans(),
    levels=st.integers(1, 6),
    poison=st.booleans(),
    seed=st.integers(0, 99),
)
def test_copies_of_an_input_count_once(
    impl, surveyed, n, inputs, copies, spread, levels, poison, seed
):
    """A first layer that reads copies: on the inputs themselves it gives what it gives on them."""
    source = torch.arange(inputs).repeat_interleave(copies)
    if spread:  # not in runs
        source = source[torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))]
    _, weight, level, ts, bias = problem(n, len(source), 11, levels, seed)
    _, second, level2, _, _ = problem(n, 11, 1, levels, seed + 1)
    x = torch.randn(n, inputs, generator=torch.Generator().manual_seed(seed))
    if poison:
        weight[level <= min(ts)] = torch.nan
    layers = [(weight, level, bias, True), (second, level2, None, False)]
    survey = chain_survey(x, layers, impl, source) if surveyed else None
    executed = []
    got = masked_chain(
        x, layers, ts, impl=impl, survey=survey, source=source, count=executed.append
    )
    doubled = [
        (torch.where(v > min(ts), w, 0).double(), v, None if b is None else b.double(), r)
        for w, v, b, r in layers
    ]
    want = masked_chain_reference(x.double()[:, source], doubled, ts)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * (1 + want.abs().max())
    if survey is not None:
        planned = masked_chain_plan(layers, ts, n, survey)
        assert sum(s.multiply_adds for s in planned) == sum(executed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_other_dtypes(dtype):
    source = torch.arange(5).repeat_interleave(7)
    _, weight, level, ts, bias = problem(20, 35, 17, 4, dtype=dtype)
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = masked_chain(x, [(weight, level, bias, True)], ts, source=source)
    agrees(got, x[:, source], weight, level, ts, bias, True)
