"""Poolings that only copy: the network on what they copy is the network."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet, vgg11

from circuitcore.network.forward import Override, forward
from circuitcore.network.repeats import repeats_of
from circuitcore.network.trace import trace


def model(pool, channels=3):
    size = pool[0] * pool[1]
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, channels, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten(),
        nn.Linear(channels * size, 7), nn.ReLU(), nn.Linear(7, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "inside"), [((6, 6), (1, 1)), ((6, 6), (2, 3)), ((4, 6), (2, 6)), ((6, 4), (3, 1))]
)
def test_each_copy_counts_once(pool, inside):
    network = trace(model(pool)).to("cpu", torch.float64)
    found = repeats_of(network, (1, *inside))
    assert (found.inside, found.outside, found.channels) == (inside, pool, 3)
    image = torch.randn(5, 1, *inside, dtype=torch.float64)
    names = network.boundary()
    copies, want = forward(network, {"input": image}, [*names, network.last])
    lean, _ = found.once(network)
    values, got = forward(lean, {"input": image}, [*names, network.last])
    assert (got - want).abs().max() < 1e-12
    assert values.shape[1] == 3 * inside[0] * inside[1]
    assert torch.equal(values[:, found.source], copies)
    masked = torch.where(torch.rand(7, copies.shape[1]) < 0.5, network.weights[found.layer], 0)
    pruned = Override({found.layer: masked})
    (want,) = forward(network, {"input": image}, [network.last], override=pruned)
    lean, pruned = found.once(network, pruned)
    (got,) = forward(lean, {"input": image}, [network.last], override=pruned)
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("pool", "inside"), [((6, 6), (6, 6)), ((6, 6), (4, 4)), ((6, 6), (9, 9)), ((2, 2), (4, 4))]
)
def test_what_averages_or_changes_nothing_is_left(pool, inside):
    assert repeats_of(trace(model(pool)), (1, *inside)) is None


def test_torchvision_networks_on_small_images():
    small = repeats_of(trace(alexnet()), (3, 64, 64))
    assert (small.layer, small.inside, small.outside) == ("classifier.1", (1, 1), (6, 6))
    assert repeats_of(trace(alexnet()), (3, 224, 224)) is None
    assert repeats_of(trace(vgg11()), (3, 32, 32)).outside == (7, 7)
    assert repeats_of(trace(vgg11()), (3, 64, 64)) is None  # 7 of 2: some average
