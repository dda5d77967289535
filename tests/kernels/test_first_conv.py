"""first_conv: the reference against the equation, and what blocks cost against what is needed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from circuitcore.kernels.first_conv.blocks import blocked_weight, blocks
from circuitcore.kernels.first_conv.operation import first_conv

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def problem(n, size, units=5, channels=3, taps=(3, 3), seed=0):
    """pixels [n, channels, *size], weight, bias, mean, std."""
    gen = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, channels, *size), generator=gen, dtype=torch.uint8)
    weight = torch.randn(units, channels, *taps, generator=gen) / (channels * taps[0] * taps[1])
    mean, std = MEAN.repeat(2)[:channels], STD.repeat(2)[:channels]
    return pixels, weight, torch.randn(units, generator=gen), mean, std


def truth(pixels, weight, bias, mean, std, index, stride, padding, relu):
    """The equation in float64; padding is added by hand."""
    picked = (pixels if index is None else pixels[index.long()]).double()
    z = (picked / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    z = F.pad(z, (padding[1], padding[1], padding[0], padding[0]))
    y = F.conv2d(z, weight.double(), None if bias is None else bias.double(), stride)
    return y.clamp(min=0) if relu else y


SHAPES = {
    "n": st.integers(1, 3),
    "size": st.tuples(st.integers(1, 14), st.integers(1, 14)),
    "channels": st.integers(1, 4),
    "taps": st.tuples(st.integers(1, 6), st.integers(1, 6)),
    "stride": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "pick": st.sampled_from([None, torch.int32, torch.int64]),
    "with_bias": st.booleans(),
    "relu": st.booleans(),
    "seed": st.integers(0, 99),
}


def check(impl, n, size, channels, taps, stride, padding, pick, with_bias, relu, seed, dtype):
    assume(all(size[k] + 2 * padding[k] >= taps[k] for k in (0, 1)))
    pixels, weight, bias, mean, std = problem(n, size, 5, channels, taps, seed)
    weight, bias = weight.to(dtype), bias.to(dtype) if with_bias else None
    index = None if pick is None else torch.tensor([n - 1, 0, 0, n // 2], dtype=pick)
    options = {"stride": stride, "padding": padding, "relu": relu}
    got = first_conv(
        pixels, weight, bias, mean=mean, std=std, index=index, impl=impl, **options
    )  # fmt: skip
    want = truth(pixels, weight, bias, mean, std, index, stride, padding, relu)
    plain = first_conv(
        pixels, weight, bias, mean=mean, std=std, index=index, impl="torch", **options
    )  # fmt: skip
    assert got.shape == want.shape and got.dtype == dtype
    assert got.movedim(1, -1).is_contiguous()
    allowed = 2 * (plain.double() - want).abs().max() + 1e-6 * (1 + want.abs().max())
    if impl != "torch":
        assert (got.double() - want).abs().max() <= allowed
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 3e-3}
    assert (got.double() - want).abs().max() <= tolerance[dtype] * (1 + want.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@settings(deadline=None, max_examples=30)
@given(**SHAPES)
def test_equals_float64(dtype, **shape):
    check("torch", dtype=dtype, **shape)


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 4),
    taps=SHAPES["taps"],
    stride=SHAPES["stride"],
    out=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    item=st.sampled_from([2, 4]),
)
def test_a_convolution_of_blocks_is_the_convolution(channels, taps, stride, out, item):
    form = blocks((channels, *taps), out, stride, item)
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(3, channels, *taps, generator=gen, dtype=torch.float64)
    b = form.side
    image = torch.randn(2, channels, form.size[0] * b, form.size[1] * b, dtype=torch.float64)
    channel = image.view(2, channels, form.size[0], b, form.size[1], b).permute(0, 3, 5, 1, 2, 4)
    channel = channel.reshape(2, b * b * channels, *form.size)
    channel = F.pad(channel, (0, 0, 0, 0, 0, form.channels - channel.shape[1]))
    got = F.conv2d(channel, blocked_weight(weight, form), None, form.stride)
    assert got.shape[2:] == out
    torch.testing.assert_close(got, F.conv2d(image, weight, None, stride)[..., : out[0], : out[1]])
    assert form.channels % (8 if item == 2 else 4) == 0


NETWORKS = {"alexnet": (1.2, 1.2), "resnet50": (1.8, 1.31), "vgg16": (2.7, 1.4),
            "mobilenet_v2": (2.4, 1.4)}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_executed_over_needed(name):
    """In 16 bits and in TF32, where plain channels filled up to 8 and 4 cost 2.67 and 1.33."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    layer = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    out = tuple(
        (224 + 2 * layer.padding[k] - layer.kernel_size[k]) // layer.stride[k] + 1 for k in (0, 1)
    )
    needed = layer.weight[0].numel()
    for item, most, plain in zip((2, 4), NETWORKS[name], (8 / 3, 4 / 3), strict=True):
        form = blocks(tuple(layer.weight.shape[1:]), out, layer.stride, item)
        assert form.fan_in / needed <= min(most, plain + 1e-9)


def test_refuses_what_does_not_fit():
    pixels, weight, bias, mean, std = problem(2, (6, 6))
    for bad in (
        (pixels.float(), weight, bias, mean, std, None),
        (pixels[:, :2], weight, bias, mean, std, None),
        (pixels, weight[0], bias, mean, std, None),
        (pixels, weight, bias[:2], mean, std, None),
        (pixels, weight, bias.double(), mean, std, None),
        (pixels, weight, bias, mean[:2], std, None),
        (pixels, weight, bias, mean, std, torch.zeros(2)),
        (pixels[..., :2], weight, bias, mean, std, None),
    ):
        with pytest.raises(ValueError):
            first_conv(*bad[:3], mean=bad[3], std=bad[4], index=bad[5], relu=True)
