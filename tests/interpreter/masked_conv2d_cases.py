"""The masked convolution kernel's tiles against the equation in float64."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from masked_layers import close, doubles, poison_new_tensors
from masked_layers import conv_problem as problem

from circuitcore.kernels.masked_conv2d.operation import masked_conv2d
from circuitcore.kernels.masked_conv2d.reference import masked_conv2d_reference


def check(got, x, weight, level, ts, bias, relu, **options):
    assert got.dtype == x.dtype
    close(got, masked_conv2d_reference(*doubles(x, weight, level, ts, bias), relu=relu, **options))


# as in tests/kernels, with smaller shapes: a program takes a millisecond here
@settings(deadline=None, max_examples=12)
@given(
    n=st.integers(1, 3),
    io=st.sampled_from([(1, 1, 1), (3, 5, 1), (4, 6, 2), (8, 8, 8), (17, 65, 1), (34, 4, 2)]),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    levels=st.integers(1, 5),
    relu=st.booleans(),
    per_level=st.booleans(),
    with_bias=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_float64(
    n, io, size, kernel, stride, padding, dilation, levels, relu, per_level, with_bias, half, seed
):
    for k in (0, 1):
        assume(size[k] + 2 * padding[k] >= dilation[k] * (kernel[k] - 1) + 1)
    dtype = torch.float16 if half else torch.float32
    i, o, groups = io
    x, weight, level, ts, bias = problem(
        n, i, o, size, kernel, groups, levels, seed, dtype, per_level
    )
    bias = bias if with_bias else None
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    got = masked_conv2d(x, weight, level, ts, bias, relu=relu, impl="triton", **options)
    check(got, x, weight, level, ts, bias, relu, **options)


def test_pruned_nan_and_kept_nan():
    x, weight, level, _, bias = problem(2, 5, 6, (5, 5), (3, 3), 1, 1)
    poisoned = torch.where(level > 3, weight, torch.nan)
    got = masked_conv2d(x, poisoned, level, [3, 6], bias, relu=True, impl="triton")
    check(got, x, weight, level, [3, 6], bias, True)
    level[2, 3, 1, 1], weight[2, 3, 1, 1] = 4, torch.nan
    got = masked_conv2d(x, weight, level, [0, 3, 4, 9], bias, relu=True, impl="triton")
    assert got[:, :, 2].isnan().flatten(1).all(1).tolist() == [True, True, False, False]
    assert not got[:, :, :2].isnan().any()


def test_non_finite_inputs_reach_only_kept_weights():
    x, weight, level, ts, bias = problem(2, 5, 6, (5, 5), (3, 3), 1, 3)
    x[0, 1, 2, 2], x[1, 2, 3, 3] = torch.nan, torch.inf
    want = masked_conv2d_reference(x, weight, level, ts, bias, relu=False)
    got = masked_conv2d(x, weight, level, ts, bias, relu=False, impl="triton")
    torch.testing.assert_close(got, want, equal_nan=True)


def test_all_kept_all_pruned_every_output_written(monkeypatch):
    x, weight, _, _, bias = problem(2, 5, 65, (6, 7), (3, 3), 1, 1)
    level = torch.full(weight.shape, 3, dtype=torch.uint8)
    poison_new_tensors(monkeypatch)
    got = masked_conv2d(x, weight, level, [3, 0, 255], bias, relu=True, impl="triton")
    monkeypatch.undo()
    check(got, x, weight, level, [3, 0, 255], bias, True)
    constant = torch.relu(bias)[:, None, None].expand_as(got[0])
    assert torch.equal(got[0], constant) and torch.equal(got[2], constant)


def test_non_contiguous_and_channels_last_inputs():
    x, weight, level, ts, bias = problem(2, 6, 4, (5, 6), (2, 3), 2, 3)
    for y in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        got = masked_conv2d(
            y, weight.flip(0).flip(0), level.repeat_interleave(2, 1)[:, ::2], ts, bias,
            groups=2, relu=False, impl="triton",
        )  # fmt: skip
        check(got, x, weight, level, ts, bias, False, groups=2)
