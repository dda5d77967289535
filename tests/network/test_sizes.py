"""Costs counted from shapes against what a run of the module does, seen by hooks."""

import pytest
import torch
import torchvision
from torch import nn

from circuitcore.network.sizes import activation_bytes, multiply_adds, value_sizes
from circuitcore.network.trace import trace


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_0"])
def test_multiply_adds_are_those_of_the_products_that_run(arch):
    torch.manual_seed(0)
    module = torchvision.models.get_model(arch, weights=None, num_classes=5).eval()
    if arch == "squeezenet1_0":  # its own head is a convolution
        module.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))
        module.forward = lambda x: module.classifier(module.features(x))
        module = nn.Sequential(module.features, module.classifier).eval()
    seen = {}

    def watch(name):
        def hook(layer, inputs, output):
            seen[name] = output.numel() * layer.weight[0].numel()

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(watch(name))
    with torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    network = trace(module)
    assert multiply_adds(network, (3, 64, 64)) == seen
    peak, behind = (activation_bytes(network, (3, 64, 64), after_boundary=b) for b in (False, True))
    assert behind < peak < 4 * sum(value_sizes(network, (3, 64, 64)).values())
