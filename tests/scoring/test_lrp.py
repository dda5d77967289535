"""Relevance of weights against a plain float64 loop over layers, and what is conserved."""

import copy

import pytest
import torch
import torch.nn.functional as F
from criteria import scores_agree, scoring_images, sweep_agrees
from torch import nn

from circuitcore.errors import UsageError
from circuitcore.network.forward import target_row
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.scoring.criteria import scored_by
from circuitcore.scoring.relevance import EPSILON, relevances

CATEGORY = 1


@pytest.fixture(scope="module")
def images(example):
    return scoring_images(example, CATEGORY)


@pytest.fixture(scope="module")
def long_way(example, method, images):
    """Scores (position), and relevance in and out of every layer, one image after another."""
    total, flows = {}, []
    for image in images:
        scores, flow = relevance_of(example.double, method, image[None], CATEGORY)
        flows.append(flow)
        for layer, own in scores.items():
            total[layer] = total.get(layer, 0) + own / len(images)
    return {layer: total[layer] for layer in method.weighted(example.double)}, flows


def relevance_of(network, method, x, unit):
    """|relevance| of every weight of one image, [O, I, taps]; layers' (in, out, lost) by name.

    Backwards through `method.parts` with R itself, patches and shares written out.
    """
    values = [x]
    for position in range(len(method.parts(network))):
        values.append(method.run(network, values[-1], begin=position, end=position + 1))
    relevance = torch.zeros_like(values[-1])
    relevance[0, unit] = values[-1][0, unit]
    scores, flow = {}, {}
    for (name, module), source, y in list(
        zip(method.parts(network), values, values[1:], strict=False)
    )[::-1]:
        if isinstance(module, nn.Linear):
            rms = (y if name != method.last_layer(network) else y[:, unit : unit + 1]).square()
            e = EPSILON * rms.mean().sqrt() * torch.where(y < 0, -1.0, 1.0)
            products = module.weight * source  # [O, I]
            own = products * (relevance / (y + e)).T
            lost = (relevance * (module.bias + e) / (y + e)).sum()
            before = own.sum(0, keepdim=True)
            scores[name] = own.abs()[:, :, None]
        elif isinstance(module, nn.Conv2d):
            own, before = conv_relevance(module, source, relevance)
            lost = torch.zeros(())
            scores[name] = own
        elif isinstance(module, nn.MaxPool2d):
            before, lost = to_the_largest(module, source, relevance), torch.zeros(())
        else:
            before, lost = relevance.reshape(source.shape), torch.zeros(())
        flow[name] = float(before.sum()), float(relevance.sum()), float(lost)
        relevance = before
    last = method.last_layer(network)
    scores[last] = scores[last][unit : unit + 1]
    return scores, flow


def conv_relevance(module, source, relevance):
    """(|relevance| of the weights [O, I, taps], relevance of the input) by the z+ rule."""
    kernel, padding, stride = module.kernel_size, module.padding, module.stride
    patches = F.unfold(source, kernel, 1, padding, stride)[0]  # [I * taps, positions]
    scores, back = [], torch.zeros_like(patches)
    for unit, weight in enumerate(module.weight.reshape(len(module.weight), -1)):
        positive = (weight[:, None] * patches).clamp(min=0)
        whole = positive.sum(0)
        share = torch.where(whole > 0, positive / whole, 0.0) * relevance[0, unit].reshape(-1)
        scores.append(share.abs().sum(1))
        back += share
    before = F.fold(back[None], source.shape[2:], kernel, 1, padding, stride)
    taps = kernel[0] * kernel[1]
    return torch.stack(scores).view(len(scores), -1, taps), before


def to_the_largest(module, source, relevance):
    _, place = F.max_pool2d(source, module.kernel_size, module.stride, return_indices=True)
    before = torch.zeros_like(source).flatten(2)
    before.scatter_add_(2, place.flatten(2), relevance.flatten(2))
    return before.view_as(source)


def test_scores_are_those_of_a_loop(example, images, long_way):
    with_options = Options(criterion="lrp")
    scores_agree(trace(example.network), images, CATEGORY, with_options, long_way[0])


def test_relevance_is_conserved(example, images, long_way):
    """In = out in all but Linear layers, there up to the share of bias and epsilon."""
    for flow in long_way[1]:
        for name, (before, out, lost) in flow.items():
            assert before + lost == pytest.approx(out, rel=1e-9), name
            assert name.startswith("classifier") or lost == 0
    assert any(abs(lost) > 1e-3 for *_, lost in long_way[1][0].values())
    network = trace(example.network)
    found = relevances(network, images.float(), target_row(network, CATEGORY))
    for layer, each in found.items():
        flows = torch.tensor([flow[layer][0] for flow in long_way[1]])
        if network.step(layer).op == "linear":
            product = (F.linear(each.x, each.weight) * each.g).flatten(1).sum(1)
        else:
            settings, w, x = network.step(layer).settings, each.weight, each.x
            positive = F.conv2d(x.clamp(min=0), w.clamp(min=0), **settings)
            positive += F.conv2d(x.clamp(max=0), w.clamp(max=0), **settings)
            product = (positive * each.g).flatten(1).sum(1)
        torch.testing.assert_close(product, flows.float(), rtol=1e-4, atol=1e-4)


def test_whole_sweep(example, method, long_way):
    sweep_agrees(example, method, CATEGORY, long_way[0], criterion="lrp")


class Residual(nn.Module):
    """A batch norm behind a convolution, one on its own, and two paths that are added."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.alone = nn.BatchNorm2d(6)
        self.act = nn.SiLU()
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.alone(x + self.conv2(x)))
        return self.fc(self.pool(self.act(x)).flatten(1))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    network = Residual().eval()
    for norm in (network.bn1, network.alone):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.normal_(0, 1)  # of both signs
        norm.bias.data.normal_(0, 0.3)
    return network


def test_a_batch_norm_behind_a_layer_is_one_with_it(residual):
    """Relevance of the weights of the network whose batch norm was folded by hand."""
    folded = copy.deepcopy(residual)
    norm, old = folded.bn1, folded.conv1
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded.conv1 = nn.Conv2d(3, 6, 3, padding=1)
    folded.conv1.weight.data = old.weight.data * scale[:, None, None, None].data
    folded.conv1.bias.data = (norm.bias - scale * norm.running_mean).data
    folded.bn1 = nn.Identity()
    images = torch.randn(3, 3, 8, 8)
    options = Options(criterion="lrp", impl="torch")
    for layer in ("conv1", "conv2", "fc"):
        one, other = (score(each, layer, images, options) for each in (residual, folded))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.abs().max() > 0


def test_a_sum_shares_in_proportion(residual):
    """Both summands' relevance adds up to the sum's, to double precision; by hand."""
    images = torch.randn(2, 3, 8, 8).double()
    network = trace(residual).to("cpu", torch.float64)
    found = relevances(network, images, target_row(network, 2))
    with torch.no_grad():
        net = copy.deepcopy(residual).double()
        x = torch.relu(net.bn1(net.conv1(images)))
        branch = net.conv2(x)
        y = net.alone(x + branch)
        z = net.act(torch.relu(y))
        logit = net.fc(net.pool(z).flatten(1))[:, 2:3]
        e = EPSILON * logit.abs() * logit.sign()
        weight = net.fc.weight[2] / 4
        places = weight.view(6, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2) * z
        r = places * (logit / (logit + e)).view(-1, 1, 1, 1)  # of y, by the pool's shares
        ey = EPSILON * y.square().mean((1, 2, 3), keepdim=True).sqrt()
        scale = net.alone.weight / (net.alone.running_var + net.alone.eps).sqrt()
        r = r / (y + torch.where(y < 0, -ey, ey)) * scale[:, None, None]  # of the sum, its factor
        expected = (branch * r).sum((1, 2, 3))
    w, each = net.conv2.weight, found["conv2"]
    flows = F.conv2d(each.x.clamp(min=0), w.clamp(min=0), padding=1) * each.g
    through = F.conv2d(each.x, w.clamp(min=0), padding=1) > 0  # else there is nobody to have it
    assert through.double().mean() > 0.99
    torch.testing.assert_close(flows.sum((1, 2, 3)), expected, rtol=1e-9, atol=1e-9)


def score(module, layer, images, options):
    from circuitcore.kernels.levels.layer import raw_scores
    from circuitcore.scoring.scores import layer_scores

    network = trace(module)
    found = scored_by(network, images, 2, options)
    return raw_scores(layer_scores(network, layer, found[layer], 2, options).layer)


@pytest.mark.parametrize(
    ("inside", "op"),
    [(nn.GroupNorm(2, 6), "groupnorm"), (nn.Sigmoid(), "sigmoid"), (nn.Softplus(), "softplus")],
)
def test_what_has_no_rule_is_refused_by_name(inside, op):
    module = nn.Sequential(nn.Conv2d(3, 6, 3), inside, nn.Flatten(), nn.Linear(6 * 36, 4)).eval()
    network = trace(module)
    with pytest.raises(UsageError, match=rf"'\w*1\w*' \({op}\)"):
        scored_by(network, torch.randn(1, 3, 8, 8), 0, Options(criterion="lrp"))


def test_products_of_values_are_refused():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
            self.fc = nn.Linear(6 * 36, 4)

        def forward(self, x):
            return self.fc((self.a(x) * self.b(x)).flatten(1))

    with pytest.raises(UsageError, match="multiply"):
        scored_by(trace(Gated().eval()), torch.randn(1, 3, 8, 8), 0, Options(criterion="lrp"))
