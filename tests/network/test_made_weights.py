"""Weights made of others, and layers in another shape: read as plain, exported as given."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from circuitcore.errors import InputError
from circuitcore.network.forward import forward
from circuitcore.network.trace import trace
from circuitcore.runs.export import state_dict


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


class StdConv2d(nn.Conv2d):
    """As timm's: the weights of every filter have mean 0 and variance 1."""

    eps = 1e-6

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=self.eps)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def small(conv=nn.Conv2d):
    module = nn.Sequential(
        conv(3, 6, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )
    return module.double().eval()


MADE = {
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    "weight norm by a hook": lambda m: nn.utils.weight_norm(m[4]),
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m[0]),
    "spectral norm by a hook": lambda m: nn.utils.spectral_norm(m[0]),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m[4]),
    "one of one's own": lambda m: nn.utils.parametrize.register_parametrization(
        m[0], "weight", Doubled()
    ),
    "two": lambda m: [
        nn.utils.parametrizations.weight_norm(m[0]),
        nn.utils.parametrize.register_parametrization(m[0], "bias", Doubled()),
    ],
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", MADE)
def test_weights_are_read_as_they_are_and_the_module_stays_as_it_is(how):
    torch.manual_seed(0)
    module = small()
    MADE[how](module)
    module.double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    expected = module(images).detach()
    network = trace(module)
    found = forward(network, {"input": images}, [network.last])[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(module(images).detach(), expected, rtol=0, atol=0)
    plain = small()
    plain.load_state_dict(state_dict(network))
    torch.testing.assert_close(plain(images), expected, rtol=1e-12, atol=1e-14)


def test_standardised_weights_are_the_ones_that_run_and_no_state_is_exported():
    torch.manual_seed(0)
    module = small(StdConv2d)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    network = trace(module)
    found = forward(network, {"input": images}, [network.last])[0]
    torch.testing.assert_close(found, module(images), rtol=1e-12, atol=1e-14)
    weight = network.weights["0"]
    torch.testing.assert_close(weight.flatten(1).mean(1), weight.new_zeros(6), rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="'0' makes its weights anew"):
        state_dict(network)


@pytest.mark.parametrize("arch", ["convnext", "googlenet", "shufflenet_v2_x0_5"])
def test_a_state_that_is_exported_is_the_module_s_whole_state(arch):
    """Its parameters of every kind, of auxiliary heads too, in its shapes: loaded strictly."""
    torch.manual_seed(0)
    if arch == "convnext":
        block = torchvision.models.convnext.CNBlockConfig
        make = lambda: torchvision.models.ConvNeXt([block(8, 16, 1), block(16, None, 1)])  # noqa: E731
    elif arch == "googlenet":
        make = lambda: torchvision.models.googlenet(init_weights=False, num_classes=3)  # noqa: E731
    else:
        make = lambda: torchvision.models.get_model(arch, num_classes=3)  # noqa: E731
    module = make().eval()
    other = copy.deepcopy(module)
    for tensor in other.parameters():
        tensor.data.zero_()
    network = trace(module)
    other.load_state_dict(state_dict(network))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
