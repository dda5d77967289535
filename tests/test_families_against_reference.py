"""One category of ten families of networks, swept, against plain torch on the module in float64.

Weights are random but for the last layer, which is fitted so that the network can tell; running
statistics are those of the images.  Rounding may move a weight whose score stands at a level's
threshold, and an image whose step stands at the decision: the reference counts the hits within.
"""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from recorded import recorded
from torch import nn
from torchvision import transforms

import circuitcore as cc
from circuitcore.bundled import IMAGES
from circuitcore.engine.prepare import prepare
from circuitcore.inputs.read import InHand, read_inputs
from circuitcore.machine.device import machine
from circuitcore.options import options_of
from circuitcore.progress import Silent
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

NAMES = sorted(p.name for p in (Path(IMAGES) / "train").iterdir())
CATEGORY = 7
GRID = [0.0, 0.3, 0.6, 0.9]
COUNTS = {"scoring_images": 2, "extraction_images": 4, "heldout_images": 6}
# Fraction of a stage's weights that rounding may move across one level: a ReLU whose input is
# within rounding of 0 has another gradient, and at 32 pixels the last maps are a pixel.
CROSSED = 1e-3
ROUNDING = 1e-3  # of the unpruned activation's standard deviation, with the same weights
INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
FAMILIES = {  # pixels, layers of the stage fc, what differs from the library's defaults
    "resnet50": (32, 1, {}),
    "vgg16_bn": (32, 3, {}),
    "mobilenet_v3_small": (48, 2, {}),
    "efficientnet_b0": (48, 1, {}),
    "convnext_tiny": (32, 1, {}),
    "densenet121": (32, 1, {}),
    "inception_v3": (75, 1, INCEPTION),
    "shufflenet_v2_x0_5": (32, 1, {}),
    "squeezenet1_1": (48, 1, {}),
    "regnet_y_400mf": (32, 1, {}),
}


def seen_at(pixels):
    return transforms.Compose([
        transforms.Grayscale(3), transforms.Resize(pixels), transforms.ToTensor(),
        transforms.Normalize([0.4] * 3, [0.3] * 3),
    ])  # fmt: skip


def batch(part, transform, begin, end):
    """Images ``begin`` to ``end`` of each category by name, and their categories."""
    found, labels = [], []
    for unit, name in enumerate(NAMES):
        for file in sorted((Path(IMAGES) / part / name).glob("*.png"))[begin:end]:
            with Image.open(file) as image:
                found.append(transform(image.convert("RGB")))
            labels.append(unit)
    return torch.stack(found), torch.tensor(labels)


def module_of(arch, transform, settings):
    """The family's network, calibrated, its last layer fitted to the very images of the sweep."""
    torch.manual_seed(1)
    module = torchvision.models.get_model(arch, weights=None, num_classes=len(NAMES), **settings)
    if arch == "vgg16_bn":  # its 4,096 hidden units are 120 of its 138 million weights
        module.classifier[0], module.classifier[3] = nn.Linear(25088, 64), nn.Linear(64, 64)
        module.classifier[6] = nn.Linear(64, len(NAMES))
    images, labels = batch("val", transform, 0, 10)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.momentum = None  # the mean of what it sees
            each.train()
        else:
            each.training = False
    last = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    inputs = []
    hook = last.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        module(images)
        module.eval()
        inputs.clear()
        module(images)
        hook.remove()
        hidden = inputs[0].flatten(2).mean(2) if inputs[0].dim() == 4 else inputs[0]
        target = nn.functional.one_hot(labels).float() * 2 + 20  # SqueezeNet has a ReLU behind it
        centred = (hidden - hidden.mean(0)).double()
        square = centred.T @ centred
        square.diagonal().add_(1e-3 * square.diagonal().mean())  # a ridge: images are few
        weight = torch.linalg.solve(square, centred.T @ (target - target.mean(0)).double())
        last.weight.copy_(weight.T.view_as(last.weight))
        last.bias.copy_(target.mean(0) - (weight.T @ hidden.mean(0).double()).float())
    return module.eval()


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_family_has_the_curve_of_plain_torch(arch):
    import modules

    pixels, head, settings = FAMILIES[arch]
    transform = seen_at(pixels)
    module = module_of(arch, transform, settings)
    model = cc.Model.of(module, transform, NAMES)
    options = options_of({"levels": GRID, "screen": "off", "device": "cpu", **COUNTS})
    inputs = read_inputs(options, InHand(model))
    prepared = prepare(inputs, options, machine(options), Silent())
    product, rows = recorded(prepared, CATEGORY, NAMES[CATEGORY])

    count = COUNTS["extraction_images"]
    images, labels = batch("val", transform, 0, count)
    scoring, of = batch("train", transform, 0, COUNTS["scoring_images"])
    splits = {"extraction": (images.double(), labels), "scoring": scoring[of == CATEGORY].double()}
    network, apart = prepared.runner.network, []
    found = contributions(network, prepared.scoring_images(CATEGORY), CATEGORY)
    assigned = {s: stage_levels(network, s, found, CATEGORY, options) for s in network.stages}

    def follow(stage, t, masks):
        """The product's, which are these but for scores within rounding of the threshold."""
        kept = assigned[stage].kept(t)  # a Linear layer in a block is a 1 x 1 convolution there
        own = {name: kept[name].view(mask.shape) for name, mask in masks.items()}
        assert set(kept) == set(masks)
        count = sum(int((own[name] ^ mask).sum()) for name, mask in masks.items())
        weights = sum(mask.numel() for mask in masks.values())
        # two weights that change places are the least there can be
        apart.append(0.0 if count <= 2 else count / weights)
        return own

    single = deepcopy(module)
    reference, masks, spread = modules.sweep(
        module.double(), splits, CATEGORY, head, GRID, options.threshold, ROUNDING, follow
    )
    assert max(apart) <= CROSSED
    exact = []
    for stage, row, (curve, chosen) in zip(
        product.record.stages, rows, reference.values(), strict=True
    ):
        assert stage.chosen == chosen
        for level, there in zip(stage.levels, curve, strict=True):
            assert level.kept_weights == there.kept
            assert there.low <= round(level.hit * count) <= there.high
            exact.append(there.low == there.high)
        for activation, there in zip(row, curve[1:], strict=True):
            torchs = modules.pruned(single, images, CATEGORY, there.masks)
            error, its = (float((a - there.activation).abs().max()) for a in (activation, torchs))
            assert error <= max(2 * its, ROUNDING * spread)
    assert sum(exact) >= 0.8 * len(exact)
    assert [stage.stage for stage in product.record.stages] == list(reference)
    assert set(product.kept) == set(masks)
    assert all(
        torch.equal(product.kept[name].view(mask.shape), mask) for name, mask in masks.items()
    )
