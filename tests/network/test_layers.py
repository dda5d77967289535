"""Every kind of layer against the module itself, in float64, over its settings.

Each stands between two convolutions of a small network.  Plain, at several levels at once, pruned
and compacted, and differentiated it must do what the module does; the layers that are tried and
those of the table must be the same, so that none is added untested.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_layers import SERVED
from served_modules import SIDE, WIDTH
from torch import nn

from circuitcore.network.compact.compaction import compact
from circuitcore.network.forward import Masks, Override, Tally, forward, target_row
from circuitcore.network.layers.table import LAYERS
from circuitcore.network.trace import trace
from circuitcore.scoring.scores import contributions

UNIT = 1
TS = (0, 1, 2)


class Between(nn.Module):
    """``body`` of the maps of one convolution, read by the next; both have biases."""

    def __init__(self, body, images):
        super().__init__()
        self.a = nn.Conv2d(2, WIDTH, 3, padding=1)
        self.body = body
        self.double().eval()
        with torch.no_grad():
            channels = body(self.a(images)).shape[1]
        self.b = nn.Conv2d(channels, 5, 3, padding=1)
        self.last = nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        x = self.b(self.body(self.a(x)))
        return self.last(torch.relu(x).mean((2, 3)))


def random_statistics(module):
    """Running statistics and scales that are not the neutral ones a new layer starts with."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(-1, 1.5)


def random_levels(network, units):
    """Level bytes 0 to 3; of the channels and units only ``units`` keep anything beyond level 0."""
    levels = {}
    for name in network.layers():
        weight = network.weights[name]
        shape = network.relevant_shape(name)
        level = torch.randint(0, 4, shape, dtype=torch.uint8)
        if name != network.last:
            ones = [1] * (weight.dim() - 1)
            level *= torch.rand(shape[0], *ones) < units
            level *= torch.rand(1, shape[1], *ones[1:]) < units
        levels[name] = level
    return levels


def check(body, seed, units):
    """Plain, scored, masked and compacted; the operations of the network."""
    torch.manual_seed(seed)
    images = torch.randn(2, 2, *SIDE, dtype=torch.float64)
    module = Between(body, images)
    random_statistics(module)
    network = trace(module)
    seen = []
    module.a.register_forward_hook(lambda _, __, out: seen.append(out) or out.clone())
    expected = module(images)
    (gradient,) = torch.autograd.grad(expected[:, UNIT].sum(), seen)
    found = forward(network, {"input": images}, [network.last])[0]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    scored = contributions(network, images, UNIT)
    torch.testing.assert_close(scored["a"].g, gradient, rtol=1e-10, atol=1e-13)
    levels, target = random_levels(network, units), target_row(network, UNIT)
    with torch.inference_mode():
        rows = forward(network, {"input": images}, [network.last], override=target,
                       masks=Masks(levels, TS), impl="torch")[0][..., 0]  # fmt: skip
        for row, t in zip(rows, TS, strict=True):
            compacted(network, levels, t, target, images, row)
    return {step.op for step in network.steps}


def compacted(network, levels, t, target, images, row):
    weights = {
        name: torch.where(level > t, target.weights.get(name, network.weights[name]), 0.0)
        for name, level in levels.items()
    }
    override = Override(weights, target.biases)
    whole, less = Tally(), Tally()
    values, last = {"input": images}, [network.last]
    expected = forward(network, values, last, override=override, tally=whole)[0][:, 0]
    torch.testing.assert_close(row, expected, rtol=1e-11, atol=1e-12)
    plan = compact(network, override, {"input": torch.zeros_like(images[:1])})
    found = plan.gathered(override).run(values, less)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert less.multiply_adds == plan.multiply_adds * len(images) <= whole.multiply_adds


def test_every_layer_of_the_table_is_tried():
    assert set(SERVED) == set(LAYERS)


@pytest.mark.parametrize("op", SERVED)
def test_a_layer_does_what_its_module_does(op):
    seen = set()

    @settings(max_examples=5, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(body=SERVED[op], seed=st.integers(0, 10_000), units=st.sampled_from([0.4, 0.7, 1]))
    def each(body, seed, units):
        seen.update(check(body, seed, units))

    each()
    assert op in seen
