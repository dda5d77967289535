"""AlexNet's convolutions at several levels of a nested sweep, 64 images.

Masks are random but for whole filters and channels that die early, as in a trained network (90 %
pruned keeps 95 % of conv1 and 1.2 % of conv5).  Contenders get the same masked weights.
"""

import pytest
import torch
import torch.nn.functional as F

from circuitcore.kernels.masked_conv2d.operation import masked_conv2d

IMAGES = 64
LAYERS = {  # filters, channels, taps, size of the input, stride, padding
    "conv1": (64, 3, 11, 224, 4, 2),
    "conv2": (192, 64, 5, 27, 1, 2),
    "conv3": (384, 192, 3, 13, 1, 1),
    "conv5": (256, 256, 3, 13, 1, 1),
}


def problem(filters, channels, taps, device):
    gen = torch.Generator().manual_seed(0)
    weight = torch.randn(filters, channels, taps, taps, generator=gen) / (channels * taps**2) ** 0.5
    level = (torch.rand(weight.shape, generator=gen) * 8).to(torch.uint8)
    ends = torch.randint(1, 9, (filters,), generator=gen).to(torch.uint8)
    level = torch.minimum(level, ends[:, None, None, None])
    if channels > 3:
        ends = torch.randint(1, 9, (channels,), generator=gen).to(torch.uint8)
        level = torch.minimum(level, ends[:, None, None])
    return weight.to(device), level.to(device), torch.randn(filters, generator=gen).to(device)


@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_masked_conv2d(race, device, name, per_level):
    filters, channels, taps, size, stride, padding = LAYERS[name]
    weight, level, bias = problem(filters, channels, taps, device)
    ts = [0, 2, 4, 6]
    x = torch.randn(IMAGES, channels, size, size).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    if per_level:
        x = torch.stack([x] * len(ts))
    options = {"stride": (stride, stride), "padding": (padding, padding)}
    found = {}

    def mask_multiply():
        found["mask multiply, then convolution"] = torch.stack(
            [
                F.conv2d(x[k] if per_level else x, weight * (level > t), bias, **options).relu_()
                for k, t in enumerate(ts)
            ]
        )

    def call(label, impl):
        def run():
            found[label] = masked_conv2d(
                x, weight, level, ts, bias, relu=True, impl=impl, **options
            )

        return run

    contenders = {"auto (this)": call("auto (this)", "auto")}
    contenders["mask multiply, then convolution"] = mask_multiply
    note = {"dtype": "float32", "shape": f"{list(x.shape)} by {list(weight.shape)}, {ts} levels"}
    race(contenders, ours="auto (this)", rounds=5, note=note)
    want = found["mask multiply, then convolution"]
    for label, got in found.items():
        assert ((got - want).abs() <= 1e-5 * want.abs().max()).all(), label
