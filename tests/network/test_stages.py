"""Which layers are a stage by default, and which ends of a network are its output units."""

import pytest
import torch
import torchvision
from torch import nn

from circuitcore.errors import InputError
from circuitcore.network.forward import forward
from circuitcore.network.graph import Step
from circuitcore.network.sizes import value_shapes
from circuitcore.network.stages import check_units, default_stages
from circuitcore.network.trace import trace


def steps(*each):
    """Steps of (name, op, inputs), inputs by default the step before."""
    names = ["input", *(e[0] for e in each)]
    return [Step(e[0], e[1], e[2] if len(e) > 2 else (names[k],)) for k, e in enumerate(each)]


def test_linear_layers_of_a_block_belong_to_the_convolutions():
    """Squeeze and excitation, the last block's too; its classifier has two layers."""
    excited = steps(
        ("conv", "conv"), ("pool", "adaptive_avgpool"), ("flat", "flatten"),
        ("squeeze", "linear"), ("relu", "relu"), ("excite", "linear"), ("gate", "hardsigmoid"),
        ("scaled", "mul", ("conv", "gate")), ("mean", "mean"), ("hidden", "linear"),
        ("act", "hardswish"), ("last", "linear"),
    )  # fmt: skip
    found = {"fc": ("hidden", "last"), "conv": ("conv", "squeeze", "excite")}
    assert default_stages(excited) == found


def test_linear_layers_on_maps_belong_to_the_convolutions():
    """ConvNeXt's on [n, h, w, c]: the last convolution is depthwise, two Linear layers follow."""
    block = steps(
        ("stem", "conv"), ("depthwise", "conv"), ("back", "permute"), ("wide", "linear"),
        ("gelu", "gelu"), ("narrow", "linear"), ("front", "permute"),
        ("sum", "add", ("front", "stem")), ("pool", "adaptive_avgpool"), ("flat", "flatten"),
        ("last", "linear"),
    )  # fmt: skip
    found = {"fc": ("last",), "conv": ("stem", "depthwise", "wide", "narrow")}
    assert default_stages(block) == found


def test_a_head_reaches_back_to_the_last_spatial_convolution_or_to_where_values_meet():
    head = (("a", "conv"), ("ra", "relu"), ("b", "conv"), ("mean", "mean"))
    assert default_stages(steps(("s", "conv"), *head), {"a", "b"}) == {
        "fc": ("a", "b"), "conv": ("s",),
    }  # fmt: skip
    meeting = steps(
        ("s", "conv"), ("t", "conv", ("s",)), ("both", "add", ("s", "t")), *head[2:]
    )  # fmt: skip
    assert default_stages(meeting, {"s", "t", "b"}) == {"fc": ("b",), "conv": ("s", "t")}
    spatial = steps(("s", "conv"), ("mean", "mean"))
    assert default_stages(spatial) == {"conv": ("s",)}


def test_squeezenet_ends_in_its_classifier_convolution():
    torch.manual_seed(0)
    module = torchvision.models.squeezenet1_1(num_classes=5).eval()
    network = trace(module)
    assert network.stages["fc"] == ("classifier.1",) and network.last == "classifier.1"
    assert network.relevant("fc") == 512
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = forward(network, {"input": images}, [network.result])[0]
        torch.testing.assert_close(found, module(images), rtol=1e-4, atol=1e-5)


def headed(*after, groups=1):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=groups), *after).eval()


def test_more_than_one_value_a_channel_is_refused_for_images_of_that_size():
    network = trace(headed(nn.AvgPool2d(3), nn.Flatten()))
    check_units(network, value_shapes(network, (1, 5, 5))[network.result])
    with pytest.raises(InputError, match="one value a channel"):
        check_units(network, value_shapes(network, (1, 9, 9))[network.result])


REFUSED = {
    "in groups": (headed(nn.AdaptiveAvgPool2d(1), nn.Flatten(), groups=2), "in groups"),
    "a linear layer that is rectified": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2), nn.ReLU()),
        "must be a Linear, or",
    ),
    "no layer": (nn.Sequential(nn.ReLU(), nn.Flatten()), "must be a Linear, or"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_other_ends_are_refused(what):
    module, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        trace(module)
