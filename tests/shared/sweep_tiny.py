"""Sweep a network small enough for Triton's interpreter, a model in hand.

    python sweep_tiny.py IMAGES RUN LAUNCHES OPTIONS

sweeps with OPTIONS (JSON) into the folder RUN and writes to the file LAUNCHES which Triton kernels
the interpreter ran, and how often.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import circuitcore
from circuitcore.api.run import Run
from circuitcore.inputs.decoding import decode_all
from circuitcore.inputs.image_files import Folder, choose_images
from circuitcore.inputs.models import Model
from circuitcore.inputs.pixels import Preprocessing, to_input
from circuitcore.inputs.weightfile import tensors_sha256
from circuitcore.kernels.compilers import interpreted
from circuitcore.network.trace import trace

CATEGORIES = ("left", "middle", "right")
SPLITS = (2, 4, 4)  # scoring, extraction and held-out images a category

OPTIONS = {  # of the smallest sweep, in plain torch
    "scoring_images": 2, "extraction_images": 4, "heldout_images": 4, "device": "cpu",
    "fc_levels": "0,0.4,0.8", "conv_levels": "0,0.3,0.7", "threshold": 0.5, "impl": "torch",
}  # fmt: skip


def tiny_model(root: Path) -> Model:
    """Two convolutions and two Linear layers; the last is fitted to the images, the rest random."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 3 * 3, 10), nn.ReLU(), nn.Linear(10, len(CATEGORIES)),
    ).eval()  # fmt: skip
    own = Preprocessing(None, None, (0.5,), (0.25,), 1)
    with torch.no_grad():
        source = Folder(root)
        files = choose_images(source, list(enumerate(CATEGORIES)), SPLITS)
        pixels = to_input(decode_all(source, files, own), own, torch.device("cpu"))
        hidden = module[:-1](pixels)
        target = nn.functional.one_hot(torch.tensor([file.category for file in files])).float() * 8
        solved = torch.linalg.lstsq(nn.functional.pad(hidden, (0, 1), value=1.0), target).solution
        module[-1].weight.copy_(solved[:-1].T)
        module[-1].bias.copy_(solved[-1])
    return Model("tiny", trace(module), tensors_sha256(module.state_dict()), CATEGORIES, own)


def count_launches() -> Counter[str]:
    """Counts, by kernel, every launch the interpreter runs from now on."""
    from triton.runtime.interpreter import GridExecutor

    launches: Counter[str] = Counter()
    execute = GridExecutor.__call__

    def counted(self, *arguments, **options):
        launches[self.fn.__name__] += 1
        return execute(self, *arguments, **options)

    GridExecutor.__call__ = counted
    return launches


def swept(images: Path, out: Path, **options: object) -> Run:
    """Category "middle" of the tiny network, swept; the network and its images are in hand."""
    return circuitcore.sweep(tiny_model(images), images, categories="middle", out=out, **options)


if __name__ == "__main__":
    images, out, written, options = sys.argv[1:]
    launches = count_launches() if interpreted() else Counter()
    try:
        swept(Path(images), Path(out), **json.loads(options))
    finally:
        Path(written).write_text(json.dumps(launches))
