"""Networks with a convolution as their head, small enough for the float64 reference, and trained.

For a second on the example's own images: enough for every category to be recognised now and then.
"""

import functools

import torch
from torch import nn

from circuitcore.bundled import IMAGES
from circuitcore.bundled.network import load_bundled
from circuitcore.inputs.models import Model


def convolutional(outputs=10):
    """Three convolutions and a head of two 1 x 1 ones, as SqueezeNet's: rectified, then pooled."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=3), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(12, outputs, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


@functools.cache
def trained(make=convolutional, steps=150):
    """The network ``make`` gives, trained on the images that test it: (module, Model)."""
    import method

    _, categories, own = load_bundled()
    splits = method.load_images(IMAGES, categories, own.mean, own.std)
    images = torch.cat([splits[s][0] for s in ("extraction", "heldout")]).float()
    labels = torch.cat([splits[s][1] for s in ("extraction", "heldout")])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().train()
        optimiser = torch.optim.Adam(module.parameters(), 0.02)
        for _ in range(steps):
            some = torch.randint(len(images), (128,))
            loss = nn.functional.cross_entropy(module(images[some]), labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return module.eval(), Model.of(module.eval(), bundled_transform(own), categories, "headed")


def bundled_transform(own):
    """The example's preprocessing as a transform object."""
    import torchvision.transforms as transforms

    return transforms.Compose([
        transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(own.mean, own.std),
    ])  # fmt: skip
