"""masked_conv2d: every path against the equation in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from masked_layers import conv_problem as problem

from circuitcore.kernels.masked.check import has_nan
from circuitcore.kernels.masked_conv2d.library import masked_conv2d_library
from circuitcore.kernels.masked_conv2d.operation import masked_conv2d
from circuitcore.kernels.masked_conv2d.reference import masked_conv2d_reference

IMPLS = ("torch", "auto")


def truth(x, weight, level, ts, bias, relu, **options):
    y = torch.stack(
        [
            F.conv2d(
                (x if x.dim() == 4 else x[k]).double(),
                torch.where(level > t, weight.double(), 0.0),
                None if bias is None else bias.double(),
                **options,
            )
            for k, t in enumerate(ts)
        ]
    )
    return y.clamp(min=0) if relu else y


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 5),
    io=st.sampled_from([(1, 1, 1), (3, 5, 1), (4, 6, 2), (8, 8, 8), (16, 17, 1), (6, 12, 6)]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    levels=st.integers(1, 5),
    relu=st.booleans(),
    per_level=st.booleans(),
    with_bias=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_float64(
    impl, n, io, size, kernel, stride, padding, dilation, levels, relu, per_level, with_bias, last,
    seed,
):  # fmt: skip
    for k in (0, 1):
        assume(size[k] + 2 * padding[k] >= dilation[k] * (kernel[k] - 1) + 1)
    i, o, groups = io
    x, weight, level, ts, bias = problem(
        n, i, o, size, kernel, groups, levels, seed, per_level=per_level
    )
    if last and not per_level:
        x = x.contiguous(memory_format=torch.channels_last)
    bias = bias if with_bias else None
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    got = masked_conv2d(x, weight, level, ts, bias, relu=relu, impl=impl, **options)
    want = truth(x, weight, level, ts, bias, relu, **options)
    plain = masked_conv2d_reference(x, weight, level, ts, bias, relu=relu, **options)
    allowed = 2 * (plain.double() - want).abs().max() + 1e-6 * (1 + want.abs().max())
    assert got.shape == want.shape and got.dtype == x.dtype
    assert (got.double() - want).abs().max() <= allowed


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("groups", [1, 2])
def test_nan_in_pruned_weights_does_not_leak(impl, groups):
    x, weight, level, ts, bias = problem(groups=groups)
    clean = masked_conv2d_reference(x, weight, level, ts, bias, groups=groups, relu=False)
    poisoned = torch.where(level > min(ts), weight, torch.nan)
    got = masked_conv2d(x, poisoned, level, ts, bias, groups=groups, relu=False, impl=impl)
    torch.testing.assert_close(got, clean)


@pytest.mark.parametrize("impl", IMPLS)
def test_non_finite_inputs_reach_only_kept_weights(impl):
    x, weight, level, _, bias = problem(n=4)
    x[0, 0, 4, 4], x[1, 1, 4, 4], x[2, 2, 4, 4] = torch.nan, torch.inf, -torch.inf
    ts = [0, 3, 7, 11]
    got = masked_conv2d(x, weight, level, ts, bias, padding=(1, 1), relu=False, impl=impl)
    for k, t in enumerate(ts):
        assert torch.equal(got[k, 0, :, 4, 4].isnan(), level[:, 0, 1, 1] > t)
        assert torch.equal(got[k, 1, :, 4, 4].isinf(), level[:, 1, 1, 1] > t)
        assert got[k, 3].isfinite().all()
        sign = torch.where(level[:, 2, 1, 1] > t, -weight[:, 2, 1, 1].sign(), 0.0)
        assert torch.equal(got[k, 2, :, 4, 4].isinf() * got[k, 2, :, 4, 4].sign(), sign)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_kept_and_all_pruned(impl):
    x, weight, _, _, bias = problem()
    level = torch.full(weight.shape, 3, dtype=torch.uint8)
    got = masked_conv2d(x, weight, level, [3, 0, 255], bias, relu=True, impl=impl)
    torch.testing.assert_close(got[1], torch.relu(F.conv2d(x, weight, bias)))
    assert torch.equal(got[0], torch.relu(bias)[:, None, None].expand_as(got[0]))
    assert torch.equal(got[2], got[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_non_contiguous_inputs(impl):
    x, weight, level, ts, bias = problem()
    want = masked_conv2d_reference(x, weight, level, ts, bias, relu=True)
    got = masked_conv2d(
        x.transpose(2, 3).contiguous().transpose(2, 3),
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        level.repeat_interleave(2, 1)[:, ::2],
        ts,
        bias.repeat_interleave(3)[::3],
        relu=True,
        impl=impl,
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_level", [False, True])
def test_the_librarys_path(groups, per_level):
    """What runs on a GPU, on finite inputs; what leaks from others is NaN."""
    x, weight, level, ts, bias = problem(groups=groups, per_level=per_level)
    want = masked_conv2d_reference(
        x, weight, level, ts, bias, stride=(2, 1), padding=(1, 1), groups=groups, relu=True
    )
    poisoned = torch.where(level > min(ts), weight, torch.nan)
    options = ((2, 1), (1, 1), (1, 1), groups, True)
    got = masked_conv2d_library(x, poisoned, level, ts, bias, *options)
    torch.testing.assert_close(got, want)
    assert not has_nan(got)
    level[:] = 0
    x[..., 1, 4, 4] = torch.inf
    assert has_nan(masked_conv2d_library(x, weight, level, ts, bias, *options))


def test_refuses_what_does_not_fit():
    x, weight, level, ts, bias = problem()
    for bad in (
        (x[:, :3], weight, level, ts, bias),
        (x, weight, level.int(), ts, bias),
        (x, weight, level[:4], ts, bias),
        (x.double(), weight, level, ts, bias),
        (x, weight, level, [], bias),
        (x, weight, level, [-1], bias),
        (x, weight, level, ts, bias[:3]),
        (x.expand(5, *x.shape), weight, level, ts, bias),
    ):
        with pytest.raises(ValueError):
            masked_conv2d(*bad, relu=False)
