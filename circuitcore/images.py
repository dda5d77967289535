"""Images: which ones score, extract and test; how a file becomes pixels.

A folder in ImageNet's layout holds ``train/<category>/*`` and ``val/<category>/*``.  Sorted by
name, the first of train are the scoring set; the first of val the extraction set and the next ones
the held-out set (Andrade & Konkle 2025: 4, 20 and 30 a category).  Decoding is Pillow's, one policy
for every file: converted to RGB (or to gray for a network of one input channel) as torchvision's
folder loader does, so transparency is dropped and EXIF rotation is not applied; 16-bit gray is
scaled to 8 bits.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from circuitcore.errors import InputError

SPLITS = ("scoring", "extraction", "heldout")
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
LARGEST = 100_000_000  # pixels; more is refused as a decompression bomb
DECODER = f"pillow-{PIL.__version__}"
# `decode` refuses by LARGEST; a filter of its own would not hold where threads decode
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], subtract mean, divide by std.

    ``resize`` and ``crop`` in pixels, None to leave the size as it is.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class ImageFile:
    """One image of a run; ``path`` is relative to the images folder, ``category`` a unit."""

    id: int
    path: str
    category: int
    split: str
    sha256: str


def list_folders(root: Path) -> list[str]:
    """Category folder names, those in both ``train`` and ``val``, sorted.

    Raises InputError where the layout is not ImageNet's, naming what is missing.
    """
    if not root.is_dir():
        raise InputError(f"--images {root}: no such folder")
    found = []
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise InputError(
                f"--images {root}: has no {part}/ folder; the layout is "
                "train/<category>/* and val/<category>/*"
            )
        found.append({p.name for p in (root / part).iterdir() if p.is_dir()})
    only = sorted(found[0] ^ found[1])
    if only:
        raise InputError(f"--images {root}: {only[0]!r} is in only one of train/ and val/")
    if not found[0]:
        raise InputError(f"--images {root}: train/ and val/ hold no category folders")
    return sorted(found[0])


def choose_images(
    root: Path,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[Path] = (),
) -> list[ImageFile]:
    """The images of a run, for (unit, folder) pairs: by split, unit, then name.

    ``counts``: of scoring, extraction and held-out images of a category; ``left_out``: files that
    are not to be used.  Raises InputError where a category has too few images, or one image (by
    content) stands in the list twice, naming both.
    """
    images: list[ImageFile] = []
    seen: dict[str, ImageFile] = {}
    for split, unit, file in choose_files(root, folders, counts, left_out):
        relative = file.relative_to(root).as_posix()
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
        image = ImageFile(len(images), relative, unit, split, digest)
        twin = seen.setdefault(digest, image)
        if twin is not image and (twin.split, twin.category) != (split, unit):
            raise InputError(
                f"{root}: the same image stands in the {twin.split} set ({twin.path}) and the "
                f"{split} set ({relative}); the sets must not share images: remove one"
            )
        images.append(image)
    return images


def choose_files(
    root: Path,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[Path] = (),
) -> list[tuple[str, int, Path]]:
    """(split, unit, file) of a run's images, as `choose_images` takes them."""
    scoring, extraction, heldout = counts
    chosen: list[tuple[str, int, Path]] = []
    for split, part, start, count in (
        ("scoring", "train", 0, scoring),
        ("extraction", "val", 0, extraction),
        ("heldout", "val", extraction, heldout),
    ):
        for unit, folder in folders:
            every = _files(root / part / folder)
            files = [file for file in every if file not in left_out]
            if len(files) < start + count:
                need = (
                    f"{scoring} for scoring"
                    if part == "train"
                    else f"{extraction} for extraction + {heldout} held out"
                )
                bad = len(every) - len(files)
                beside = f" beside {bad} unreadable" if bad else ""
                raise InputError(
                    f"{root / part / folder}: {len(files)} images{beside}, {need} are needed "
                    "(--scoring-images, --extraction-images, --heldout-images)"
                )
            chosen += [(split, unit, file) for file in files[start : start + count]]
    return chosen


def _files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
    )


def decode(file: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Pixels of one file, resized and cropped: uint8 [channels, height, width].

    Raises InputError where the file is no whole image or has over 100 million pixels.
    """
    try:
        with Image.open(file) as opened:
            if opened.width * opened.height > LARGEST:
                raise InputError(
                    f"{file}: {opened.width} x {opened.height} pixels, refused: at most {LARGEST:,}"
                )
            opened.load()
            image = _converted(opened, preprocessing.channels)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct...
        raise InputError(f"{file}: not a readable image: {error}") from None
    pixels = np.asarray(_sized(image, preprocessing))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _sized(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    if preprocessing.resize is None and preprocessing.crop is None:
        return image
    from torchvision.transforms import InterpolationMode, functional  # seconds to import

    if preprocessing.resize is not None:
        mode = InterpolationMode(preprocessing.interpolation)
        image = functional.resize(image, [preprocessing.resize], interpolation=mode)
    if preprocessing.crop is not None:
        image = functional.center_crop(image, [preprocessing.crop])
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion clips instead of scaling
        gray = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(gray, 0, 65535) // 257).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def to_input(pixels: np.ndarray, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalised network input, float32 [images, channels, height, width], from uint8 pixels."""
    batch = torch.from_numpy(np.ascontiguousarray(pixels))
    if device.type == "cuda":  # from pinned memory the copy does not hold up the caller
        batch = batch.pin_memory().to(device, non_blocking=True)
    mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1)
    # channels-last: convolutions run faster on it; in place: new memory costs more than the sums
    images = torch.empty(batch.shape, device=device, memory_format=torch.channels_last)
    return images.copy_(batch).div_(255).sub_(mean).div_(std)
