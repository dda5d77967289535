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

from PIL import Image

from circuitcore.errors import InputError

SPLITS = ("scoring", "extraction", "heldout")
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
# `decode` refuses by LARGEST; a filter of its own would not hold where threads decode
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
