"""Decoding under the unpruned forward pass: what it takes off the sum, and how long that waits.

256 JPEGs of ImageNet's usual size (500 x 375 pixels, 65 kB), an AlexNet of random weights.  What
waiting is left is the first chunk's decoding, and decoding that is slower than the network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet

from circuitcore.inputs.decoding import Decoding
from circuitcore.inputs.image_files import Folder, ImageFile
from circuitcore.inputs.pixels import Preprocessing, to_input
from circuitcore.network.forward import forward
from circuitcore.network.trace import trace

IMAGES, CHUNK = 256, 64
IMAGENET = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> tuple[Path, list[ImageFile]]:
    """Smooth colours with a little noise: JPEG spends on them what it spends on a photograph."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        colours = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + random.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{number}.jpg", quality=90)
        files.append(ImageFile(number, f"{number}.jpg", 0, "extraction", ""))
    return root, files


def test_decoding_runs_under_the_forward_pass(photographs, device, race):
    root, files = photographs
    torch.manual_seed(0)
    network = trace(alexnet(weights=None).eval()).to(device)
    waited: list[float] = []
    results = {}

    @torch.inference_mode()
    def run(name: str, first: int) -> None:
        with Decoding(Folder(root), files, IMAGENET) as decoding:
            decoding.wait(first)
            found = []
            for start in range(0, IMAGES, CHUNK):
                decoding.wait(start + CHUNK)
                images = to_input(decoding.pixels[start : start + CHUNK], IMAGENET, device)
                found.append(forward(network, {"input": images}, [network.last])[0].cpu())
        results[name] = torch.cat(found)
        if not first:
            waited.append(decoding.waited)

    @torch.inference_mode()
    def only_network() -> None:
        images = torch.zeros((CHUNK, 3, 224, 224), device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for _ in range(0, IMAGES, CHUNK):
            forward(network, {"input": images}, [network.last])[0].cpu()

    def only_decoding() -> None:
        with Decoding(Folder(root), files, IMAGENET) as decoding:
            decoding.wait(IMAGES)

    times = race(
        {
            "decoded under the forward pass": lambda: run("under", 0),
            "decoded first": lambda: run("first", IMAGES),
            "decoding alone": only_decoding,
            "network alone": only_network,
        },
        "decoded under the forward pass",
        rounds=3,
    )
    assert torch.equal(results["under"], results["first"])
    part = sorted(waited)[len(waited) // 2] / times.median("decoded under the forward pass")
    print(f"  the forward pass waits for images {part:.0%} of the time")
