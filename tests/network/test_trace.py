"""Networks of many kinds (fault 44): run as plain torch runs them, or refused naming the layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from circuitcore.errors import InputError
from circuitcore.network.forward import Masks, forward
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions


def lively(module, seed=0):
    """Random statistics and weights everywhere, so that no batch norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.copy_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, batch norm, ReLU6, a residual add, a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4)
        self.pointwise = nn.Conv2d(12, 8, 1)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.hidden = nn.Linear(16, 9)
        self.last = nn.Linear(9, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.pointwise(F.relu(self.grouped(torch.relu(self.depthwise(x)))))
        x = torch.cat([x + y, y], 1)
        x = F.max_pool2d(self.pool(x), 2).mean([2, 3])
        return self.last(F.dropout(F.relu(self.hidden(x)), training=self.training))


NETWORKS = {
    "mixed": Mixed,
    "alexnet": lambda: torchvision.models.alexnet(num_classes=7),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 8, num_classes=7),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.25),
    "googlenet": lambda: torchvision.models.googlenet(
        num_classes=7, aux_logits=False, init_weights=False
    ),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=7),
    "vision transformer": lambda: torchvision.models.VisionTransformer(
        80, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=7
    ),
}
RUNS = {"mixed", "alexnet", "resnet18", "densenet", "mobilenet_v2", "googlenet"}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_44_logits_are_plain_torch_s_or_the_layer_is_named(name):
    torch.manual_seed(0)
    module = lively(NETWORKS[name]())
    size = 17 if name == "mixed" else 80
    images = torch.randn(2, 3, size, size)
    try:
        network = trace(module)
    except InputError as error:
        assert name not in RUNS, str(error)
        assert any(words in str(error) for words in ("layer '", "traced", "ends in '")), str(error)
        return
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(images.double())
        found = forward(network, {"input": images}, [network.last])[0].double()
    assert (found - expected).abs().max() <= 1e-4 * expected.std()
    assert set(network.layers()) == {
        layer for layer, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    total = sum(p.numel() for n, p in module.named_parameters() if n in _weights(network))
    last = network.weights[network.last]
    assert network.relevant() == total - last.numel() + last.shape[1]


def _weights(network):
    return {f"{layer}.weight" for layer in network.layers()}


@pytest.mark.parametrize("name", ["mixed", "resnet18", "densenet"])
@pytest.mark.parametrize("stage", ["fc", "conv"])
def test_44_masked_levels_are_plain_torch_with_weights_set_to_zero(name, stage):
    torch.manual_seed(1)
    module = lively(NETWORKS[name](), 1)
    images = torch.randn(3, 3, 33, 33)
    network, unit = trace(module), 2
    found = contributions(network, images, unit)
    assigned = stage_levels(network, stage, found, unit, Options(levels="0,0.4,0.9"))
    from circuitcore.network.forward import target_row

    with torch.no_grad():
        rows = forward(
            network,
            {"input": images},
            [network.last],
            override=target_row(network, unit),
            masks=Masks(assigned.levels, [0, 1, 2]),
        )[0][..., 0]
        for t in range(3):
            plain = copy.deepcopy(module)
            for layer, mask in assigned.kept(t).items():
                weight = plain.get_submodule(layer).weight
                row = weight[unit : unit + 1] if layer == network.last else weight
                row.mul_(mask)
            expected = plain.double()(images.double())[:, unit]
            spread = module(images)[:, unit].std()
            assert (rows[t].double() - expected).abs().max() <= 1e-4 * spread


def test_44_scores_of_grouped_layers_are_gradients_times_weights():
    """Signed scores of any layer are w times dz/dw, whatever the groups, strides and norms."""
    module = lively(Mixed(), 2)
    images = torch.randn(2, 3, 17, 17, generator=torch.Generator().manual_seed(2))
    network = trace(module)
    from circuitcore.kernels.levels.layer import raw_scores
    from circuitcore.scoring.scores import layer_scores

    plain = copy.deepcopy(module).double()
    plain(images.double())[:, 3].mean().backward()
    found = contributions(network, images, 3)
    for layer in network.layers():
        options = Options(magnitude="signed")
        scores = raw_scores(layer_scores(network, layer, found[layer], 3, options).layer)
        weight = plain.get_submodule(layer).weight
        expected = (weight * weight.grad).detach()
        expected = expected[3:4] if layer == network.last else expected
        found_scores = scores.view(expected.shape).double()
        assert (found_scores - expected).abs().max() <= 1e-5 * expected.abs().max(), layer


# --- refused --------------------------------------------------------------------------------------


class Net(nn.Module):
    """A small network whose forward is given; ``a`` and ``b`` are convolutions of equal shape."""

    def __init__(self, body, prepare=lambda self: None):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self.last = nn.Linear(4, 3)
        self.body = body
        prepare(self)

    def forward(self, x):
        return self.last(self.body(self, self.stem(x)).mean([2, 3]))


def share(self):
    self.b.weight = self.a.weight


def add_after_in_place(self, x):
    y = self.relu(x)
    return x + y


def in_place_behind_dropout(self, x):
    return self.relu(self.drop(x)) + x


def in_place_in_front_of_dropout(self, x):
    y = self.drop(x)
    return self.relu(x) + y


def in_place_by_position(self, x):
    return F.relu(x, True) + x


def in_place_method(self, x):
    return x.relu_() + x


def in_place_twice(self, x):
    y = self.relu(x)
    z = y.add_(1)
    return self.a(x) + y * z


def in_place_unnamed(self, x):
    y = self.a(x)
    x.mul_(0.5)
    return y + x.clone() + self.drop(x).sub_(1) + x


def part_is_overwritten(self, x):
    x[:, :2].relu_()
    return x


def part_is_read(self, x):
    y = x[:, :2]
    return torch.cat([self.relu(x), y, y], 1)[:, 2:6]


def products(self, x):
    y = x.flatten(2)
    return (y @ y.transpose(1, 2))[..., None]


class Head(nn.MultiheadAttention):
    """An attention by another name."""


def attends(self):
    self.a = nn.MultiheadAttention(4, 2)


def attends_otherwise(self):
    self.a = Head(4, 2)


def unseen(self):
    self.w = nn.Parameter(torch.ones(4, 4, 1, 1))


REFUSED = {
    "a layer used twice": (Net(lambda self, x: self.a(torch.relu(self.a(x)))), "'a'.*twice"),
    "a shared weight": (Net(lambda self, x: self.b(torch.relu(self.a(x))), share), "'b' shares"),
    "a part overwritten": (Net(part_is_overwritten), "'Net' overwrites"),
    "a part read": (Net(part_is_read), "'relu' overwrites"),
    "a branch": (Net(lambda self, x: x if x.sum() > 0 else -x), "must not branch"),
    "an unknown function": (Net(lambda self, x: torch.fft.fft2(x).real), "'Net' .fft_fft2 in Net"),
    "sorting": (Net(lambda self, x: x.sort(1)[0]), "'Net' .sort in Net"),
    "images mixed": (Net(lambda self, x: x - x.mean(0, keepdim=True)), "images of a batch"),
    "images joined": (Net(lambda self, x: x.view(-1, 2, 6, 6)), "'Net'.*images"),
    "a norm of the batch": (
        Net(lambda self, x: F.batch_norm(x, None, None, training=True)), "'Net'.*at hand",
    ),
    "products of values": (Net(products), "'Net' .matmul"),
    "attention": (Net(lambda self, x: self.a(x, x, x)[0], attends), "'a' .*attention"),
    "attention looked into": (
        Net(lambda self, x: self.a(x, x, x)[0], attends_otherwise), "'a'.*(attention|traced)",
    ),
    "a recurrent layer": (
        Net(lambda self, x: self.a(x)[0], lambda self: setattr(self, "a", nn.LSTM(3, 3))),
        "'a' .LSTM",
    ),
    "an unseen weight": (
        Net(lambda self, x: F.conv2d(x, self.w), unseen),
        "'Net'.*of no Conv2d",
    ),
}  # fmt: skip
SERVED = {
    "in-place rectifier": add_after_in_place,
    "in-place method": in_place_method,
    "in-place by position": in_place_by_position,
    "in-place behind dropout": in_place_behind_dropout,
    "in-place in front of dropout": in_place_in_front_of_dropout,
    "in-place twice": in_place_twice,
    "in-place without a name": in_place_unnamed,
    "another rectifier": lambda self, x: F.leaky_relu(x),
    "a product": lambda self, x: x * x,
    "a weighted sum": lambda self, x: torch.add(x, self.a(x), alpha=2),
    "a constant added": lambda self, x: x + 1,
}


@pytest.mark.parametrize("what", list(SERVED))
def test_what_a_forward_overwrites_is_read_as_torch_reads_it(what):
    module = lively(Net(SERVED[what])).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    network = trace(module)
    with torch.no_grad():
        found = forward(network, {"input": images}, [network.last])[0]
        torch.testing.assert_close(found, module(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", list(REFUSED))
def test_44_refused_naming_the_layer(what):
    module, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        trace(module.eval())


def test_44_in_place_where_nobody_else_reads_is_run():
    module = lively(Net(lambda self, x: self.b(self.relu(self.a(self.relu(x))))))
    images = torch.randn(2, 3, 6, 6)
    network = trace(module)
    with torch.no_grad():
        found = forward(network, {"input": images}, [network.last])[0]
        torch.testing.assert_close(found, module(images), rtol=1e-5, atol=1e-5)


def test_44_a_network_that_does_not_end_in_a_linear_layer_is_refused():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2), nn.ReLU())
    with pytest.raises(InputError, match="must be a Linear"):
        trace(module)


def test_44_a_linear_layer_on_images_is_not_silently_wrong():
    """A Linear that runs over the last axis of a feature map: right or refused."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3), nn.Flatten(), nn.Linear(24, 2))
    images = torch.randn(2, 1, 6, 6)
    try:
        network = trace(module)
        found = forward(network, {"input": images}, [network.last])[0]
        scores = contributions(network, images, 0)
        stage_levels(network, "fc", scores, 0, Options(levels="3"))
    except (InputError, ValueError, RuntimeError):
        return
    torch.testing.assert_close(found, module(images), rtol=1e-5, atol=1e-5)
