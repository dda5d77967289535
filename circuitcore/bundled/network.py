"""The bundled network: AlexNet's shape at a hundredth of its cost."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from circuitcore.bundled import WEIGHTS

INPUT_SIZE = (1, 28, 28)


class SmallAlexNet(nn.Module):
    """Five convolutions and three Linear layers, named as torchvision's AlexNet names them.

    Input [N, 1, 28, 28] float, output [N, classes] raw logits. 1.14 million weights, 5.4 million
    multiply-adds an image, where the hidden Linear layers have the default `width`. Parameters run
    from `features.0.weight` to `classifier.6.bias`.
    """

    def __init__(self, classes: int = 10, dropout: float = 0.25, width: int = 768) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, padding=2),  # [16, 28, 28]
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # [16, 13, 13]
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),  # [32, 6, 6]
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),  # [64, 3, 3]
        )
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            nn.Linear(64 * 3 * 3, width),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of normalised images [N, 1, 28, 28]."""
        x = self.features(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class Preprocessing(NamedTuple):
    """What a grayscale image in [0, 1] goes through: (image - mean) / std, one value a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Bundled(NamedTuple):
    """The bundled network in eval mode, its categories in unit order, and its preprocessing."""

    network: SmallAlexNet
    categories: list[str]
    preprocessing: Preprocessing


def read_header(path: Path = WEIGHTS) -> dict[str, str]:
    """Return the metadata of a weights file written by `train.py`.

    Lists are JSON: `categories`, `mean`, `std`, `input_size`; plain: `arch`, `seed`, `epochs`,
    `heldout_accuracy` (fraction of the 10,000 test images, measured on the stored weights).
    """
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


def load_bundled(path: Path = WEIGHTS) -> Bundled:
    """Return the trained network (eval mode, float32, CPU), its categories and preprocessing.

    The file holds float16 tensors; they are widened to float32. Raises RuntimeError when the
    tensors are not those of `SmallAlexNet`.
    """
    header = read_header(path)
    with safe_open(str(path), framework="pt") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    categories = [str(name) for name in json.loads(header["categories"])]
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
        network = SmallAlexNet(classes=len(categories))
    network.load_state_dict(state)
    preprocessing = Preprocessing(
        mean=tuple(json.loads(header["mean"])), std=tuple(json.loads(header["std"]))
    )
    return Bundled(network.eval().requires_grad_(False), categories, preprocessing)
