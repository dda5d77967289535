"""Modules that a researcher writes: what is viewed, what remakes its weights, what stays whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import transforms

import circuitcore as cc

NAMES = ("a", "b", "c", "d")
SEEN = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.4] * 3, [0.3] * 3)])
FEW = {
    "levels": "0,0.5", "threshold": 0.5, "scoring_images": 2, "extraction_images": 6,
    "heldout_images": 6, "device": "cpu",
}  # fmt: skip


class Viewed(nn.Module):
    """Its forward takes the batch to lie as it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8192, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.last(x.view(x.size(0), -1))


class Standardised(nn.Conv2d):
    """Setting its parameter to 0 does not set what it computes with to 0."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Chain(nn.Module):
    """A convolution and a layer behind a pooling, in one module."""

    def __init__(self, conv=nn.Conv2d):
        super().__init__()
        first = conv(3, 8, 3, padding=1)
        self.f = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                               nn.Linear(128, 4))  # fmt: skip
        self.last = self.f[4]

    def forward(self, x):
        return self.f(x)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four categories of noise, each with one bright quarter."""
    root, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for place, name in enumerate(NAMES):
        for part, count in (("train", 4), ("val", 12)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[:, 8 * place : 8 * place + 8] += 130
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def fitted(module, images):
    """The module, its last layer fitted so that it can tell the images."""
    files = [(k, f) for k, n in enumerate(NAMES) for f in sorted(images.glob(f"*/{n}/*.png"))]
    batch = torch.stack([SEEN(Image.open(file)) for _, file in files]).contiguous()
    wanted = F.one_hot(torch.tensor([k for k, _ in files]), 4).float()
    seen = []
    hook = module.last.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        module(batch)
        hook.remove()
        centred = seen[0] - seen[0].mean(0)
        weight = torch.linalg.lstsq(centred, wanted - wanted.mean(0)).solution.T
        module.last.weight.copy_(weight)
        module.last.bias.copy_(wanted.mean(0) - weight @ seen[0].mean(0))
    return module.eval()


def swept(module, images, out, **options):
    return cc.sweep(cc.Model.of(module, SEEN, NAMES), images, out=out, **{**FEW, **options})


def test_a_module_that_views_its_maps_is_swept(images, tmp_path):
    torch.manual_seed(0)
    module = fitted(Viewed(), images)
    run = swept(module, images, tmp_path / "run")
    assert set(run) == set(NAMES)
    pruned = run["a"].apply(module)
    assert int((pruned.conv.weight == 0).sum()) == int((~run["a"].masks["conv"]).sum())


def test_a_module_that_fails_on_an_image_is_named(images, tmp_path):
    module = fitted(Viewed(), images)
    model = cc.Model.of(module, transforms.Compose([transforms.Resize(40), SEEN]), NAMES)
    with pytest.raises(cc.InputError, match="40 x 40 pixels and 3 channels do not fit .*--resize"):
        cc.sweep(model, images, out=tmp_path / "run", **FEW)


def test_a_layer_that_remakes_its_weights_is_not_said_to_be_pruned(images, tmp_path):
    torch.manual_seed(0)
    module = fitted(Chain(Standardised), images)
    run = swept(module, images, tmp_path / "run")
    with pytest.raises(cc.InputError, match=r"'f\.0' \(Standardised\) makes its weights anew"):
        run["a"].apply(module)
    before = module.f[0].weight.clone()
    with pytest.raises(cc.InputError, match="makes its weights anew"), run["a"].applied(module):
        pass
    assert torch.equal(module.f[0].weight, before)


def test_a_last_layer_that_is_left_whole_has_the_bias(images, tmp_path):
    torch.manual_seed(0)
    module = fitted(Chain(), images)
    run = swept(module, images, tmp_path / "run", skip=["f.4"])
    circuit = run["a"]
    assert set(circuit.masks) == {"f.0"}
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pruned, x = circuit.apply(module), torch.randn(3, 3, 32, 32)
    with torch.no_grad(), circuit.applied(module) as there:
        assert torch.equal(there(x), pruned(x))
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    moved = (pruned.last.bias[0] - module.last.bias[0]).item()
    assert moved == pytest.approx(circuit.bias, abs=1e-6)
    assert torch.equal(pruned.last.weight, module.last.weight)
    rows = run.stability(resamples=2, pool=4)
    assert [row["layer"] for row in rows[:2]] == ["", "f.0"]


def test_a_module_of_several_layers_is_no_target(images, tmp_path):
    module = fitted(Chain(), images)
    options = {name: value for name, value in FEW.items() if name != "threshold"}
    with pytest.raises(cc.UsageError, match=r"--target f: a module of several layers.*f\.4"):
        cc.sweep(
            cc.Model.of(module, SEEN, NAMES), images, target="f:0", out=tmp_path / "r", **options
        )


def test_what_makes_a_norm_permanent_is_named(images, tmp_path):
    torch.manual_seed(0)
    module = fitted(Chain(), images)
    nn.utils.weight_norm(module.f[0])
    run = swept(module, images, tmp_path / "run")
    with pytest.raises(cc.InputError, match=r"with torch\.nn\.utils\.remove_weight_norm"):
        run["a"].apply(module)
    nn.utils.remove_weight_norm(module.f[0])
    run["a"].apply(module)
    nn.utils.parametrizations.weight_norm(module.f[0])
    with pytest.raises(cc.InputError, match="parametrize.remove_parametrizations"):
        run["a"].apply(module)
