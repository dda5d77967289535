"""Reading Fashion-MNIST and choosing the images that are shipped."""

import gzip
import hashlib
import struct
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from circuitcore.bundled import CATEGORIES

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SCORING_IMAGES = 4  # a category, from the training split
POOL_IMAGES = 28  # more of them, to draw scoring images from anew
VAL_IMAGES = 50  # a category, from the test split: 20 for extraction, then 30 held out

_FILES = {"train": "train", "test": "t10k"}
_SIZES = {"train": 60_000, "test": 10_000}


class Split(NamedTuple):
    """One split: images uint8 [N, 28, 28] and labels uint8 [N], in the order of the files."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_split(split: str, folder: Path | None = None) -> Split:
    """Read the `train` (60,000 images) or the `test` split (10,000).

    `folder` holds the four IDX files, gzipped or not, itself or in torchvision's
    `FashionMNIST/raw` below it; by default it is the one of Debian's package.
    Raises FileNotFoundError where the files are missing, saying how to get them, and ValueError
    where a file is not what its header says.
    """
    prefix = _FILES[split]
    images = _read_idx(_find(f"{prefix}-images-idx3-ubyte", folder))
    labels = _read_idx(_find(f"{prefix}-labels-idx1-ubyte", folder))
    count = _SIZES[split]
    if images.shape != (count, 28, 28) or labels.shape != (count,):
        raise ValueError(
            f"The {split} split has images {images.shape} and labels {labels.shape}, "
            f"Fashion-MNIST has ({count}, 28, 28) and ({count},). Is this another data set?"
        )
    return Split(images, labels)


def _find(name: str, folder: Path | None) -> Path:
    root = folder or DEBIAN_FOLDER
    for place in (root, root / "FashionMNIST" / "raw", root / "raw"):
        for path in (place / f"{name}.gz", place / name):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"No {name}[.gz] in {root}. Install Debian's package dataset-fashion-mnist "
        "(apt-get install dataset-fashion-mnist), or download the data with "
        "torchvision.datasets.FashionMNIST(DIR, download=True) and pass --data DIR."
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Parse an IDX file of bytes: 0, 0, type 8, rank, then big-endian sizes, then the data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
    except (OSError, EOFError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank)
    if zero != 0 or kind != 8 or data.size != int(np.prod(shape)):
        raise ValueError(f"{path} is not an IDX file of bytes of shape {shape}")
    return data.reshape(shape)


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode [28, 28] uint8 pixels as an 8-bit grayscale PNG."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _shuffled(split: str, indices: NDArray[np.int64], seed: int) -> list[int]:
    """Order indices by a hash of seed, split and index: the same in every library version."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()

    return sorted((int(i) for i in indices), key=key)


def choose_images(train: Split, test: Split, seed: int) -> dict[str, list[list[int]]]:
    """Return the indices shipped, per split and per category in label order, each list ascending.

    `train` gives 4 scoring images a category and 28 more (`pool`), `test` 50 others. The choice
    depends on the seed alone, never on a network. No image is chosen twice, and none of the test
    images chosen occurs anywhere in the training split.
    """
    in_training = {pixels.tobytes() for pixels in train.images}
    seen: set[bytes] = set()
    parts = {
        "train": ("train", train, SCORING_IMAGES),
        "test": ("test", test, VAL_IMAGES),
        "pool": ("train", train, POOL_IMAGES),  # last: the others do not depend on it
    }
    chosen: dict[str, list[list[int]]] = {part: [] for part in parts}
    for part, (name, split, count) in parts.items():
        for label in range(len(CATEGORIES)):
            taken: list[int] = []
            for index in _shuffled(name, np.flatnonzero(split.labels == label), seed):
                content = split.images[index].tobytes()
                if content in seen or (name == "test" and content in in_training):
                    continue
                seen.add(content)
                taken.append(index)
                if len(taken) == count:
                    break
            else:
                raise ValueError(f"Fewer than {count} distinct {name} images of {label}")
            chosen[part].append(sorted(taken))
    return chosen


def write_images(train: Split, test: Split, out: Path, seed: int) -> int:
    """Write the chosen images in ImageNet's layout and return how many there are.

    `out/train/<category>/NNNNN.png` and `out/val/<category>/NNNNN.png`, where NNNNN is the index
    in the original file; images of the pool are `pool-NNNNN.png`, which come last by name.
    Raises FileExistsError where `out` already holds PNGs.
    """
    if any(out.rglob("*.png")):
        raise FileExistsError(f"{out} already holds images: choose another --out or remove them")
    chosen = choose_images(train, test, seed)
    written = 0
    for part, folder, split in (("train", "train", train), ("test", "val", test),
                                ("pool", "train", train)):  # fmt: skip
        prefix = "pool-" if part == "pool" else ""
        for category, indices in zip(CATEGORIES, chosen[part], strict=True):
            place = out / folder / category
            place.mkdir(parents=True, exist_ok=True)
            for index in indices:
                (place / f"{prefix}{index:05d}.png").write_bytes(png_bytes(split.images[index]))
                written += 1
    return written
