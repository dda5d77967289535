"""Scoring AlexNet's convolutions: kernel granularity with abs per position, 4 images.

The contender is the approach of the code that came before: a grouped convolution makes one map per
kernel (250,048 an image), which is multiplied by the gradient, made absolute and summed.

g is made 0 at 70 % of the positions: ReLU and max pooling make most of it 0 in a network.  The
fused kernel leaves these out where the input channels fill its vectors; conv1 has three, so there
the vectors hold filters and every position is computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from circuitcore.kernels.score_conv.operation import score_conv

IMAGES = 4
TARGET_SPEED, TARGET_MEMORY = 20, 10
DENSE = "all five, no 0 in g"
LAYERS = {  # channels, filters, taps, stride, padding, input size
    "conv1": (3, 64, 11, 4, 2, 224),
    "conv2": (64, 192, 5, 1, 2, 27),
    "conv3": (192, 384, 3, 1, 1, 13),
    "conv4": (384, 256, 3, 1, 1, 13),
    "conv5": (256, 256, 3, 1, 1, 13),
}


def make(
    layer: str, device: torch.device, share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
    """weight, x, g and the geometry; ``share`` of g is not 0."""
    channels, filters, taps, stride, padding, size = LAYERS[layer]
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(filters, channels, taps, taps, generator=random) * 0.05
    x = torch.randn(IMAGES, channels, size, size, generator=random).relu()
    out = (size + 2 * padding - taps) // stride + 1
    g = torch.randn(IMAGES, filters, out, out, generator=random)
    g = g * (torch.rand(g.shape, generator=random) < share)
    geometry = {"stride": (stride, stride), "padding": (padding, padding)}
    return weight.to(device), x.to(device), g.to(device), geometry


def one_map_per_kernel(
    weight: torch.Tensor, x: torch.Tensor, g: torch.Tensor, geometry: Any
) -> torch.Tensor:
    filters, channels, *taps = weight.shape
    kernels = weight.transpose(0, 1).reshape(channels * filters, 1, *taps)
    maps = F.conv2d(x, kernels, None, geometry["stride"], geometry["padding"], groups=channels)
    maps = maps.view(len(x), channels, filters, *maps.shape[2:])
    return (maps * g[:, None]).abs().sum((3, 4)).mean(0).T


@pytest.mark.parametrize("layer", ["all five", DENSE, *LAYERS])
def test_kernel_granularity(layer: str, race: Any, device: torch.device, peak_memory: Any) -> None:
    share = 1.0 if layer == DENSE else 0.3
    cases = [make(name, device, share) for name in ([layer] if layer in LAYERS else LAYERS)]

    def fused() -> list[torch.Tensor]:
        return [score_conv(w, x, g, granularity="kernel", **k) for w, x, g, k in cases]

    def naive() -> list[torch.Tensor]:
        return [one_map_per_kernel(*case) for case in cases]

    for ours, theirs in zip(fused(), naive(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.max()))
    ours_bytes, theirs_bytes = peak_memory(fused), peak_memory(naive)
    result = race(
        {"fused (this)": fused, "one map per kernel": naive},
        ours="fused (this)",
        note={
            "dtype": "float32",
            "shape": f"{layer}, {share:.0%} of g not 0",
            "peak memory above the start, fused": f"{ours_bytes / 2**20:.1f} MiB",
            "peak memory above the start, maps": f"{theirs_bytes / 2**20:.1f} MiB",
            "peak memory ratio": f"{theirs_bytes / max(ours_bytes, 2**20):.0f}, of at least 1 MiB "
            f"(target {TARGET_MEMORY})",
            "target": f"{TARGET_SPEED} x for all five layers on a CPU",
        },
    )
    assert result.seconds
