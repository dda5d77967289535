"""Which images score, extract and test; a folder of them.

A folder in ImageNet's layout holds ``train/<category>/*`` and ``val/<category>/*``.  Sorted by
name, the first of train are the scoring set; the first of val the extraction set and the next ones
the held-out set (Andrade & Konkle 2025: 4, 20 and 30 a category).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from circuitcore.errors import InputError
from circuitcore.inputs.pixels import Preprocessing, decode

SPLITS = ("scoring", "extraction", "heldout")
PARTS = ("train", "val")
EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}


class Images(Protocol):
    """Where images come from: a `Folder`, or data sets in hand (`inputs.datasets`).

    An image has a name that is unique among them; ``part`` is ``train`` or ``val``.
    """

    @property
    def place(self) -> str:
        """What the manifest calls it."""

    def categories(self) -> list[str]:
        """What categories are called here, sorted; each has images in both parts."""

    def listed(self, part: str, category: str) -> list[str]:
        """Names of a category's images, in the order they are taken."""

    def where(self, *name: str) -> str:
        """An image, or a part and category of it, as messages call them."""

    def sha256(self, name: str) -> str:
        """Of what the image is decoded from.  Raises InputError where it cannot be read."""

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """One image, decoded (`pixels.decode`).  Raises InputError where it is no whole image."""


@dataclass(frozen=True)
class Folder:
    """A folder in ImageNet's layout; names are paths relative to it."""

    root: Path

    @property
    def place(self) -> str:
        """The whole path."""
        return str(self.root.resolve())

    def categories(self) -> list[str]:
        """Category folders, those in both ``train`` and ``val``, sorted.

        Raises InputError where the layout is not ImageNet's, naming what is missing.
        """
        root = self.root
        if not root.is_dir():
            raise InputError(f"--images {root}: no such folder")
        found = []
        for part in PARTS:
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

    def listed(self, part: str, category: str) -> list[str]:
        """Image files of a category, sorted by name."""
        files = (self.root / part / category).iterdir()
        return sorted(
            file.relative_to(self.root).as_posix()
            for file in files
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
        )

    def where(self, *name: str) -> str:
        """The path."""
        return str(self.root.joinpath(*name))

    def sha256(self, name: str) -> str:
        """Of the file's bytes."""
        file = self.root / name
        try:
            return hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """The file, decoded."""
        return decode(self.root / name, preprocessing)


@dataclass(frozen=True)
class ImageFile:
    """One image of a run; ``path`` is its name among its `Images`, ``category`` a unit."""

    id: int
    path: str
    category: int
    split: str
    sha256: str


def choose_images(
    source: Images,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[str] = (),
) -> list[ImageFile]:
    """The images of a run, for (unit, folder) pairs: by split, unit, then order.

    ``counts``: of scoring, extraction and held-out images of a category; ``left_out``: names that
    are not to be used.  Raises InputError where a category has too few images, or one image (by
    content) stands in the list twice, naming both.
    """
    images: list[ImageFile] = []
    seen: dict[str, ImageFile] = {}
    for split, unit, name in choose_files(source, folders, counts, left_out):
        image = ImageFile(len(images), name, unit, split, source.sha256(name))
        twin = seen.setdefault(image.sha256, image)
        if twin is not image and (twin.split, twin.category) != (split, unit):
            raise InputError(
                f"{source.where()}: the same image stands in the {twin.split} set ({twin.path}) "
                f"and the {split} set ({name}); the sets must not share images: remove one"
            )
        images.append(image)
    return images


def choose_files(
    source: Images,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[str] = (),
) -> list[tuple[str, int, str]]:
    """(split, unit, name) of a run's images, as `choose_images` takes them."""
    scoring, extraction, heldout = counts
    chosen: list[tuple[str, int, str]] = []
    for split, part, start, count in (
        ("scoring", "train", 0, scoring),
        ("extraction", "val", 0, extraction),
        ("heldout", "val", extraction, heldout),
    ):
        for unit, folder in folders:
            every = source.listed(part, folder)
            names = [name for name in every if name not in left_out]
            if len(names) < start + count:
                need = (
                    f"{scoring} for scoring"
                    if part == "train"
                    else f"{extraction} for extraction + {heldout} held out"
                )
                bad = len(every) - len(names)
                beside = f" beside {bad} unreadable" if bad else ""
                raise InputError(
                    f"{source.where(part, folder)}: {len(names)} images{beside}, {need} are needed "
                    "(--scoring-images, --extraction-images, --heldout-images)"
                )
            chosen += [(split, unit, name) for name in names[start : start + count]]
    return chosen
