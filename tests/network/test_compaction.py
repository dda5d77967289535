"""Exact compaction against the uncompacted network, in float64: same activations, counted work."""

from functools import lru_cache

import pytest
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from circuitcore.network.compact.compaction import compact
from circuitcore.network.forward import Override, Tally, forward
from circuitcore.network.trace import trace

BUILDERS = {
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=5), 72),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 40),
    "resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=5), 40),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5), 40),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=5), 40),
}


def pruned(network, density, units, seed, unit=3):
    """Random weights kept at ``density``; of the filters and of the channels read, ``units``."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in network.layers():
        weight = network.weights[name]
        if name == network.last:
            weight = weight[unit : unit + 1]
        kept = torch.rand(weight.shape, generator=generator) < density
        if name != network.last:
            ones = [1] * (weight.dim() - 1)
            kept &= torch.rand(weight.shape[0], *ones, generator=generator) < units
            kept &= torch.rand(1, weight.shape[1], *ones[1:], generator=generator) < units
        weights[name] = torch.where(kept, weight, 0.0)
    return Override(weights, {network.last: network.biases[network.last][unit : unit + 1]})


def compare(network, override, images):
    whole, less = Tally(), Tally()
    with torch.inference_mode():
        expected = forward(
            network, {"input": images}, [network.last], override=override, tally=whole
        )[0][:, 0]
        compacted = compact(network, override, {"input": torch.zeros_like(images[:1])}).gathered(
            override
        )
        found = compacted.run({"input": images}, less)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert less.multiply_adds <= whole.multiply_adds
    assert less.multiply_adds == compacted.multiply_adds * len(images)
    return less.multiply_adds / whole.multiply_adds, expected


def randomised(model):
    """Statistics and biases that are not the neutral ones a new network starts with."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double().eval()


@lru_cache(1)
def traced(name):
    return trace(randomised(BUILDERS[name][0]()))


@pytest.mark.parametrize(("density", "units"), [(1.0, 0.8), (0.3, 0.6), (0.02, 0.9), (0, 1)])
@pytest.mark.parametrize("name", BUILDERS)  # the slower of the two: each is built once
def test_any_network_gives_the_same_activations(name, density, units) -> None:
    network, size = traced(name), BUILDERS[name][1]
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    part, _ = compare(network, pruned(network, density, units, 0), images)
    assert part < (1 if units < 1 or density == 0 else 1.001)


def test_a_batch_norm_behind_a_convolution_is_part_of_it():
    """ResNet's all are, and its counted work is the convolutions'."""
    network, size = traced("resnet18"), BUILDERS["resnet18"][1]
    override = pruned(network, 0.3, 0.6, 0)
    blank = {"input": torch.zeros(1, 3, size, size, dtype=torch.float64)}
    planned = compact(network, override, blank)
    assert any(piece.step.op == "batchnorm" for piece in planned.pieces)
    ready = planned.gathered(override)
    assert not any(piece.step.op == "batchnorm" for piece in ready.pieces)
    assert ready.multiply_adds == planned.multiply_adds


class Borders(nn.Module):
    """Zero padding makes a constant map differ at the border: the case a bias cannot hold."""

    def __init__(self, stride, padding, dilation, groups):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, stride, padding, dilation, groups)
        self.c = nn.Conv2d(4, 6, 3, padding=2)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.d = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        c = self.d(self.pool(torch.relu(self.c(b))))
        return self.fc(c.mean((2, 3)))


# one channel of a depthwise convolution survives
@example(seed=1790, stride=1, padding=0, dilation=1, groups=4, density=0.1, units=0.6)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    stride=st.integers(1, 2),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    density=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]),
    units=st.sampled_from([0.3, 0.6, 1.0]),
)
def test_borders(seed, stride, padding, dilation, groups, density, units) -> None:
    torch.manual_seed(seed)
    network = trace(randomised(Borders(stride, padding, dilation, groups)))
    images = torch.randn(3, 2, 11, 12, dtype=torch.float64)
    compare(network, pruned(network, density, units, seed, unit=1), images)


def test_the_bundled_network_at_every_level() -> None:
    """Real scores, real levels: compacted equals uncompacted, and the work falls with the level."""
    from circuitcore.engine.passes import circuit_override
    from circuitcore.engine.prepare import prepare
    from circuitcore.inputs.read import read_inputs
    from circuitcore.machine.device import machine
    from circuitcore.options import Options
    from circuitcore.progress import Silent
    from circuitcore.scoring.levels import stage_levels
    from circuitcore.scoring.scores import contributions

    options = Options(extraction_images=4, heldout_images=4)
    prepared = prepare(read_inputs(options), options, machine(options), Silent())
    network = prepared.runner.network.to("cpu", torch.float64)
    found = contributions(prepared.runner.network, prepared.scoring_images(1), 1)
    images = prepared.runner.batch(prepared.extraction, slice(0, 8)).double()
    parts = []
    net = prepared.runner.network
    assigned = {s: stage_levels(net, s, found, 1, options) for s in ("fc", "conv")}
    for t in range(32):
        kept = assigned["fc"].kept(t) | assigned["conv"].kept(t)
        _, override = circuit_override(prepared.runner.network, 1, kept)
        double = Override(
            {k: v.double() for k, v in override.weights.items()},
            {k: v.double() for k, v in override.biases.items()},
        )
        parts.append(compare(network, double, images)[0])
    assert parts[0] > 0.9 and parts[-1] < 0.05
    assert all(b <= a for a, b in zip(parts, parts[1:], strict=False)), "nested: never more work"
