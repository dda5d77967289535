"""The bundled example: a small trained network and real images, read with no network access.

The images and the weights come from Fashion-MNIST (MIT, see `LICENSE-fashion-mnist`).
This module names the files only; `network.py` loads them and `train.py` makes them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
WEIGHTS_NAME = "small_alexnet.safetensors"
WEIGHTS = FOLDER / WEIGHTS_NAME
IMAGES = FOLDER / "images"

# The order of the output units, which is not the sorted order of the folder names.
CATEGORIES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
