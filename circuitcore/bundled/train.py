"""Train the bundled network and choose its images: `python -m circuitcore.bundled.train`.

The seed fixes every number on one kind of processor with one version of torch and one thread
count; elsewhere rounding differs, and with it the weights and, slightly, the accuracy.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from circuitcore.bundled import CATEGORIES, WEIGHTS_NAME
from circuitcore.bundled.fashion_mnist import read_split, write_images
from circuitcore.bundled.network import INPUT_SIZE, SmallAlexNet

MEAN = 0.2860  # of the training pixels in [0, 1]
STD = 0.3530
EPOCHS = 12
BATCH = 128
PEAK_LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.02
WARM_UP = 0.15  # fraction of the steps in which the learning rate rises


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Turn pixels uint8 [N, 28, 28] into network inputs float32 [N, 1, 28, 28]."""
    return (torch.from_numpy(images.copy()).float()[:, None] / 255 - MEAN) / STD


def augment(x: Tensor) -> Tensor:
    """Mirror half of the images [N, 1, H, W], at random."""
    mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def initialise(network: nn.Module) -> None:
    """Draw every weight as He et al. (2015) do for ReLUs and set every bias to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def train_network(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    seed: int,
    epochs: int = EPOCHS,
    progress: bool = False,
) -> SmallAlexNet:
    """Train on images uint8 [N, 28, 28] with labels uint8 [N]; return the network in eval mode.

    Every random number comes from `seed`; the caller's random state is left as it was. AdamW with
    a one-cycle learning rate, cross-entropy, dropout, mirrored images.
    """
    x, y = normalise(images), torch.from_numpy(labels.astype(np.int64))
    steps = -(-len(y) // BATCH) * epochs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallAlexNet(classes=len(CATEGORIES))
        initialise(network)
        network.to(memory_format=torch.channels_last).train()  # faster on a CPU
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=PEAK_LEARNING_RATE, total_steps=steps, pct_start=WARM_UP
        )
        for epoch in range(epochs):
            total, start = 0.0, time.perf_counter()
            for chosen in torch.randperm(len(y)).split(BATCH):
                loss = nn.functional.cross_entropy(network(augment(x[chosen])), y[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(chosen)
            if progress:
                spent = time.perf_counter() - start
                message = f"epoch {epoch + 1}/{epochs}: loss {total / len(y):.4f}, {spent:.0f} s"
                print(message, file=sys.stderr)
    return network.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> float:
    """Return the fraction of images uint8 [N, 28, 28] whose largest logit is their label's."""
    hits = 0
    y = torch.from_numpy(labels.astype(np.int64))
    for part, truth in zip(normalise(images).split(500), y.split(500), strict=True):
        hits += int((network(part).argmax(1) == truth).sum())
    return hits / len(labels)


def round_to_half(network: SmallAlexNet) -> dict[str, Tensor]:
    """Round every parameter of the network, in place, to float16; return the float16 tensors."""
    state = {name: value.detach().half() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return state


def main(arguments: list[str] | None = None) -> int:
    """Write `small_alexnet.safetensors` and `images/` under `--out`; 0, or 3 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m circuitcore.bundled.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--data", type=Path, help="folder with the data (default: Debian's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2, help="the result depends on it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        train, test = read_split("train", options.data), read_split("test", options.data)
        written = write_images(train, test, options.out / "images", options.seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"{written} images in {options.out / 'images'}", file=sys.stderr)

    start = time.perf_counter()
    network = train_network(
        train.images, train.labels, seed=options.seed, epochs=options.epochs, progress=True
    )
    seconds = time.perf_counter() - start
    state = round_to_half(network)
    reached = accuracy(network, test.images, test.labels)
    metadata = {
        "arch": "SmallAlexNet",
        "categories": json.dumps(CATEGORIES),
        "input_size": json.dumps(INPUT_SIZE),
        "mean": json.dumps([MEAN]),
        "std": json.dumps([STD]),
        "heldout_accuracy": f"{reached:.4f}",
        "seed": str(options.seed),
        "epochs": str(options.epochs),
        "data": "Fashion-MNIST, (c) 2017 Zalando SE, MIT",
    }
    target = options.out / WEIGHTS_NAME
    save_file(state, str(target), metadata)
    target.chmod(0o644)
    print(f"{target}: accuracy {reached:.4f}, trained in {seconds:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
