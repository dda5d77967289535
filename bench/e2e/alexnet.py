"""A trained full-size AlexNet and images for it, from Fashion-MNIST: ImageNet need not be here.

Speed depends on what scores and activations look like (zeros, units that die together), so the
benchmarks run a network that was trained.  ``python bench/e2e/alexnet.py`` makes it, in about three
CPU minutes; it is kept in ``CIRCUITCORE_CACHE`` (by default the user's cache folder).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from circuitcore.bundled import CATEGORIES
from circuitcore.bundled.fashion_mnist import Split, png_bytes, read_split
from circuitcore.kernels.masked.paths import table_path

LEAST_ACCURACY = 0.75  # on the first TEST_IMAGES of the test split, at the size trained most on
LEAST_LARGE = 0.70  # at the larger size
TEST_IMAGES = 500


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; another recipe is another file in the cache.

    One batch in ``large_every`` is shown at ``large`` pixels, the others at ``pixels``, so that
    the network works at both: its adaptive pooling accepts either.
    """

    images: int = 4000
    epochs: int = 1
    batch: int = 40
    pixels: int = 128
    large: int = 224
    large_every: int = 4
    rate: float = 2e-4
    seed: int = 0

    def file(self) -> Path:
        """Where the trained weights are kept."""
        key = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]
        return table_path().parent / f"alexnet-fashion-mnist-{key}.safetensors"


def trained_alexnet(recipe: Recipe | None = None) -> Path:
    """The safetensors file of the trained network, training it first where it is missing.

    Raises FileNotFoundError where Fashion-MNIST is not on this machine, AssertionError where
    training ended below the least accuracy.
    """
    recipe = recipe or Recipe()
    path = recipe.file()
    if path.exists():
        return path
    train, test = read_split("train"), read_split("test")
    began = time.process_time()
    network = _train(recipe, train)
    found = {size: accuracy(network, test, size) for size in (recipe.pixels, recipe.large)}
    seconds = time.process_time() - began
    shown = ", ".join(f"{100 * a:.1f} % at {s} pixels" for s, a in found.items())
    print(f"AlexNet on Fashion-MNIST: {shown}, {seconds:.0f} CPU seconds")
    good = found[recipe.pixels] >= LEAST_ACCURACY and found[recipe.large] >= LEAST_LARGE
    assert good, f"trained badly: {shown}"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()},
        unfinished,
        {
            "categories": json.dumps(CATEGORIES),
            "recipe": json.dumps(asdict(recipe)),
            "accuracy": json.dumps(found),
        },
    )
    unfinished.replace(path)
    return path


def measured_accuracy(path: Path) -> dict[str, float]:
    """Test accuracy by input size in pixels, as measured when the file was made."""
    with safe_open(str(path), framework="pt") as file:
        found: dict[str, float] = json.loads(file.metadata()["accuracy"])
    return found


def network_input(images: np.ndarray, pixels: int) -> Tensor:
    """Upscaled, in three equal channels, normalised as torchvision's AlexNet wants it."""
    own = AlexNet_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (own.mean, own.std))
    gray = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
    large = F.interpolate(gray, size=(pixels, pixels), mode="bilinear", align_corners=False)
    return ((large - mean) / std).contiguous(memory_format=torch.channels_last)


def _train(recipe: Recipe, data: Split) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network = alexnet(num_classes=len(CATEGORIES), dropout=0.2)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        network = network.to(memory_format=torch.channels_last).train()
        order = np.random.default_rng(recipe.seed)
        chosen = order.permutation(len(data.images))[: recipe.images]
        steps = -(-recipe.images // recipe.batch) * recipe.epochs
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, steps)
        step = 0
        for _ in range(recipe.epochs):
            shuffled = order.permutation(chosen)
            for first in range(0, len(shuffled), recipe.batch):
                part = shuffled[first : first + recipe.batch]
                large = step % recipe.large_every == recipe.large_every - 1
                x = network_input(data.images[part], recipe.large if large else recipe.pixels)
                loss = F.cross_entropy(network(x), torch.from_numpy(data.labels[part]).long())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                if step % 20 == 0:
                    print(f"  step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, data: Split, pixels: int) -> float:
    """Fraction of the first ``TEST_IMAGES`` images that are classified rightly."""
    right = 0
    for first in range(0, TEST_IMAGES, 50):
        part = slice(first, first + 50)
        said = network(network_input(data.images[part], pixels)).argmax(1)
        right += int((said == torch.from_numpy(data.labels[part]).long()).sum())
    return right / TEST_IMAGES


def image_folder(out: Path, train_images: int, val_images: int) -> Path:
    """``out/train/<category>/*.png`` and ``out/val/...``, so many a category; returns ``out``.

    Grayscale PNGs of 28 x 28 pixels, to be upscaled by --resize; no image is written twice.
    Raises FileNotFoundError where Fashion-MNIST is not on this machine.
    """
    seen: set[bytes] = set()
    wanted = (("train", "train", train_images), ("test", "val", val_images))
    for name, folder, count in wanted:
        split = read_split(name)
        for label, category in enumerate(CATEGORIES):
            place = out / folder / category
            place.mkdir(parents=True, exist_ok=True)
            written = 0
            for index in np.flatnonzero(split.labels == label):
                pixels = split.images[index]
                if written == count:
                    break
                if pixels.tobytes() in seen:
                    continue
                seen.add(pixels.tobytes())
                (place / f"{index:05d}.png").write_bytes(png_bytes(pixels))
                written += 1
            if written < count:
                raise ValueError(f"{name} split: fewer than {count} distinct images of {category}")
    return out


if __name__ == "__main__":
    where = trained_alexnet()
    print(where, measured_accuracy(where))
