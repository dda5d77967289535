"""Networks cut at a target: what the module itself computes there, with masks and compacted."""

from functools import lru_cache

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from circuitcore.engine.passes import circuit_override
from circuitcore.errors import UsageError
from circuitcore.network.compact.compaction import compact
from circuitcore.network.forward import forward
from circuitcore.network.stages import check_units
from circuitcore.network.target import channels, cut, is_map, step_called, unit_layer
from circuitcore.network.trace import trace

IMAGES = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)).double()
POOLS = {
    "max": lambda v: v.amax((2, 3)),
    "mean": lambda v: v.mean((2, 3)),
    "centre": lambda v: v[:, :, v.shape[2] // 2, v.shape[3] // 2],
}


@lru_cache
def network_of(name):
    """A torchvision network in float64, with statistics that are not neutral, and its trace."""
    torch.manual_seed(1)
    module = torchvision.models.get_model(name, weights=None, num_classes=5)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.uniform_(-0.2, 0.2)
            each.running_var.uniform_(0.5, 2)
            nn.init.uniform_(each.bias, -0.5, 0.5)
    module = module.double().eval()
    return module, trace(module)


def values_there(module, name, call=0):
    """What a submodule of a module gives, of its ``call``-th call."""
    seen = []
    hook = module.get_submodule(name).register_forward_hook(lambda m, x, out: seen.append(out + 0))
    with torch.no_grad():
        module(IMAGES)
    hook.remove()
    return seen[call]


@pytest.mark.parametrize(
    ("arch", "label", "module", "call", "pool"),
    [
        ("resnet18", "layer2.1.conv2", "layer2.1.conv2", 0, "max"),
        ("resnet18", "layer2.1.bn1", "layer2.1.bn1", 0, "mean"),
        ("resnet18", "layer3_0_relu", "layer3.0.relu", 0, "centre"),
        ("resnet18", "relu", "relu", 0, "max"),
        ("resnet18", "maxpool", "maxpool", 0, "mean"),
        ("squeezenet1_1", "features.6.expand3x3", "features.6.expand3x3", 0, "max"),
    ],
)
def test_units_of_a_cut_network_are_the_modules(arch, label, module, call, pool):
    whole, network = network_of(arch)
    name = step_called(network, label)
    found = cut(network, name, pool)
    expected = POOLS[pool](values_there(whole, module, call))
    check_units(found, tuple(expected.shape[1:]))
    with torch.inference_mode():
        torch.testing.assert_close(
            forward(found, {"input": IMAGES}, [found.result])[0], expected, rtol=1e-9, atol=1e-9
        )
    assert found.outputs == channels(network, name) == expected.shape[1]
    assert found.relevant_shape(found.last) == (1, *network.weights[found.last].shape[1:])
    assert set(found.layers()) < set(network.layers())
    assert all(found.stages.values())

    generator = torch.Generator().manual_seed(2)
    masks = {
        layer: torch.rand(found.relevant_shape(layer), generator=generator) < 0.4
        for layer in found.layers()
    }
    small, override = circuit_override(found, 7, masks)
    blank = {"input": torch.zeros_like(IMAGES[:1])}
    with torch.inference_mode():
        run = forward(small, {"input": IMAGES}, [small.result], override=override)[0][:, 0]
        less = compact(small, override, blank).gathered(override).run({"input": IMAGES})
    torch.testing.assert_close(less, run, rtol=1e-9, atol=1e-9)
    masked = {
        **found.weights,
        **{n: torch.where(m, found.weights[n], 0.0) for n, m in masks.items() if n != found.last},
    }
    row = torch.zeros_like(found.weights[found.last])
    row[7] = torch.where(masks[found.last][0], found.weights[found.last][7], 0.0)
    state = {f"{n}.weight": w for n, w in {**masked, found.last: row}.items()}
    own = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.load_state_dict({**own, **state})
    try:
        there = POOLS[pool](values_there(whole, module, call))[:, 7]
    finally:
        whole.load_state_dict(own)
    torch.testing.assert_close(run, there, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arch", "label", "pool"),
    [("resnet18", "add", "max"), ("squeezenet1_1", "cat", "mean"), ("alexnet", "classifier.1", "")],
)
def test_directions_read_every_channel(arch, label, pool):
    """Sums and concatenations of layers too."""
    _, network = network_of(arch)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    name = step_called(network, label)
    matrix = torch.from_numpy(np.random.default_rng(3).normal(size=(2, channels(network, name))))
    found = cut(network, name, pool or "max", matrix)
    with torch.inference_mode():
        value, made = (
            forward(network, {"input": images}, [name])[0],
            forward(found, {"input": images}, [found.result])[0],
        )
    assert is_map(network, name) == (value.dim() == 4)
    expected = torch.einsum("nc...,kc->nk...", value, matrix)
    expected = POOLS[pool](expected) if pool else expected
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)
    last = found.layers()[-1]
    assert found.relevant_shape(last) == tuple(network.weights[last].shape)
    assert found.last not in found.layers()


@pytest.mark.parametrize(
    ("arch", "label", "said"),
    [
        ("resnet18", "layer3.0.conv9", "no such layer; did you mean 'layer3.0.conv"),
        ("resnet18", "layer3.0.relu", "layer3_0_relu (reads layer3.0.bn1), layer3_0_relu_1 (reads"),
        ("resnet18", "add", "no unit of one layer (add stands between)"),
        ("resnet18", "flatten", "no unit of one layer (flatten stands between)"),
        ("mobilenet_v2", "features.3.conv.1.0", "grouped convolution features.3.conv.1.0"),
    ],
)
def test_what_is_no_target_is_said_so(arch, label, said):
    _, network = network_of(arch)
    with pytest.raises(UsageError) as caught:
        unit_layer(network, step_called(network, label))
    assert said in str(caught.value)
