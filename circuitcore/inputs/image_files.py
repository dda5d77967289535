"""Which images score, extract and test; a folder of them.

A folder in ImageNet's layout holds ``train/<category>/*`` and ``val/<category>/*``.  Sorted by
name, the first of train are the scoring set; the first of val the extraction set and the next ones
the held-out set (Andrade & Konkle 2025: 4, 20 and 30 a category).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path
from typing import Protocol

import numpy as np

from circuitcore.errors import InputError
from circuitcore.inputs.images.policy import is_image
from circuitcore.inputs.pixels import Preprocessing, decode, read_file

SPLITS = ("scoring", "extraction", "heldout")
PARTS = ("train", "val")
EXPECTED = """
what is expected:
  ROOT/
    train/
      <category>/*.jpg ...    images that score
    val/
      <category>/*.jpg ...    images that extract and test
or <category>/*.jpg alone, an index (.csv, .parquet) or tar files: circuitcore sweep --help"""


class Images(Protocol):
    """Where images come from: a `Folder`, a `Listing` of files or data sets in hand.

    An image has a name that is unique among them; ``part`` is ``train`` or ``val``.
    """

    @property
    def place(self) -> str:
        """What the manifest calls it."""

    def parts(self) -> dict[str, list[str]]:
        """What categories are called here, sorted, by part."""

    def categories(self) -> list[str]:
        """Those in both parts, sorted.  Raises InputError where one is in one part alone."""

    def listed(self, part: str, category: str) -> list[str]:
        """Names of a category's images, in the order they are taken."""

    def notes(self) -> list[str]:
        """What the user should know of how they were read, a line each."""

    def where(self, *name: str) -> str:
        """An image, or a part and category of it, as messages call them."""

    def sha256(self, name: str) -> str:
        """Of what the image is decoded from.  Raises InputError where it cannot be read."""

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """One image, decoded (`pixels.decode`).  Raises InputError where it is no whole image."""


def in_both(parts: Mapping[str, Sequence[str]], where: str) -> list[str]:
    """Categories of both parts, sorted.  Raises InputError naming those in one part alone."""
    train, val = (set(parts[part]) for part in PARTS)
    if only := sorted(train ^ val):
        shown = ", ".join(map(repr, only[:5])) + (f" and {len(only) - 5} more" * (len(only) > 5))
        lack = "val" if only[0] in train else "train"
        raise InputError(
            f"{where}: {shown} {'are' if len(only) > 1 else 'is'} in only one of train and val "
            f"({only[0]!r} is missing in {lack}); --incomplete drop goes on without"
        )
    if not train:
        raise InputError(f"{where}: no images in train and val")
    return sorted(train)


@dataclass(frozen=True)
class Folder:
    """A folder in ImageNet's layout; names are paths relative to it.

    Links are followed; hidden files and folders (``.ipynb_checkpoints``) are passed over.
    """

    root: Path

    @property
    def place(self) -> str:
        """The whole path."""
        return str(self.root.resolve())

    def parts(self) -> dict[str, list[str]]:
        """Category folders of ``train`` and ``val``.

        Raises InputError where the layout is not ImageNet's, saying what is there instead.
        """
        root = self.root
        if not root.is_dir():
            raise InputError(f"--images {root}: no such folder")
        if lacks := [part for part in PARTS if not (root / part).is_dir()]:
            raise InputError(
                f"--images {root}: has no {lacks[0]}/ folder{_there(root)}{_expected(root)}"
            )
        return {part: self._categories(root / part) for part in PARTS}

    def _categories(self, folder: Path) -> list[str]:
        found = [p for p in folder.iterdir() if not p.name.startswith(".")]
        folders = sorted(p.name for p in found if p.is_dir())
        images = [p.name for p in found if is_image(p.name)]
        if images and not folders:
            raise InputError(
                f"--images {self.root}: {folder.name}/ holds {len(images)} images "
                f"({sorted(images)[0]!r} ...) and no category folders: which image is what is not "
                f"said{_expected(self.root)}"
            )
        for name in folders[:3]:  # as deep everywhere, so a few tell
            within = [p for p in (folder / name).iterdir() if not p.name.startswith(".")]
            deeper = sorted(p.name for p in within if p.is_dir())
            if deeper and not any(is_image(p.name) for p in within):
                raise InputError(
                    f"--images {self.root}: {folder.name}/{name}/ holds folders ({deeper[0]!r} "
                    f"...) and no images: one folder too deep{_expected(self.root)}"
                )
        return folders

    def categories(self) -> list[str]:
        """Category folders, those in both ``train`` and ``val``, sorted.

        Raises InputError where the layout is not ImageNet's, naming what is missing.
        """
        return in_both(self.parts(), f"--images {self.root}")

    def listed(self, part: str, category: str) -> list[str]:
        """Image files of a category, sorted by name; none where there is no such folder."""
        folder = self.root / part / category
        if not folder.is_dir():
            return []
        names = sorted(name for name in os.listdir(folder) if is_image(name))
        return [f"{part}/{category}/{name}" for name in names]

    def notes(self) -> list[str]:
        """How many files are passed over for their ending."""
        passed: Counter[str] = Counter()
        for part, categories in self.parts().items():
            for category in categories:
                with os.scandir(self.root / part / category) as files:
                    for file in files:
                        if not is_image(file.name) and not file.name.startswith("."):
                            passed["/" if file.is_dir() else splitext(file.name)[1].lower()] += 1
        return passed_over(passed)

    def where(self, *name: str) -> str:
        """The path."""
        return str(self.root.joinpath(*name))

    def sha256(self, name: str) -> str:
        """Of the file's bytes."""
        file = self.root / name
        return hashlib.sha256(read_file(file, str(file))).hexdigest()

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """The file, decoded."""
        return decode(self.root / name, preprocessing)


def passed_over(kinds: Mapping[str, int]) -> list[str]:
    """A note on files that are not taken for images: how many of each ending ("/": folders)."""
    if not kinds:
        return []
    called = {"": "without an ending", "/": "folders"}
    listed = ", ".join(f"{count} {called.get(kind, kind)}" for kind, count in sorted(kinds.items()))
    return [f"files that are no images, passed over: {listed}"]


def _expected(root: Path) -> str:
    return EXPECTED.replace("ROOT", str(root))


def _there(root: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 4} more" * (len(names) > 4)
    return f", only {', '.join(names[:4])}{more}" if names else ", it is empty"


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
    hashes: dict[str, str] | None = None,
) -> list[ImageFile]:
    """The images of a run, for (unit, folder) pairs: by split, unit, then order.

    ``counts``: of scoring, extraction and held-out images of a category; ``left_out``: names that
    are not to be used; ``hashes``: sha256 by name, added to.  Raises InputError where a category
    has too few images, a name is not UTF-8, or one image (by content) stands in the list twice,
    naming both.
    """
    images: list[ImageFile] = []
    seen: dict[str, ImageFile] = {}
    hashes = {} if hashes is None else hashes
    for split, unit, name in choose_files(source, folders, counts, left_out):
        if name not in hashes:
            check_text(name, source)
            hashes[name] = source.sha256(name)
        image = ImageFile(len(images), name, unit, split, hashes[name])
        twin = seen.setdefault(image.sha256, image)
        if twin is not image:
            sets = f"in the {twin.split} set ({twin.path}) and the {split} set ({name}); the sets "
            if twin.split == split:
                sets = f"twice in the {split} set ({twin.path} and {name}); a set "
            raise Twice(
                f"{source.where()}: the same image stands {sets}must not share or repeat images: "
                "remove one, or --duplicates drop takes the next ones instead",
                name,
            )
        images.append(image)
    return images


class Twice(InputError):
    """One image, by content, stands in a run twice; ``name`` is the second."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def repeated_images(
    source: Images,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[str],
    hashes: dict[str, str],
) -> set[str]:
    """Images that a run would take though it has them already; of each the first one stays.

    The next ones in their folders take their place.  Raises as `choose_images` does but for that.
    """
    found: set[str] = set()
    while True:
        try:
            choose_images(source, folders, counts, {*left_out, *found}, hashes)
            return found
        except Twice as error:
            found.add(error.name)


def check_text(name: str, source: Images) -> None:
    """Raise InputError where a name is not UTF-8: no table or page could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{source.where().encode('utf-8', 'backslashreplace').decode()}: the name {name!r} is "
            "not UTF-8: rename it (convmv does many at once)"
        ) from None


def choose_files(
    source: Images,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    left_out: Collection[str] = (),
) -> list[tuple[str, int, str]]:
    """(split, unit, name) of a run's images, as `choose_images` takes them."""
    scoring, extraction, heldout = counts
    chosen: list[tuple[str, int, str]] = []
    for _, folder in folders:
        check_text(folder, source)
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
                beside = f" beside {bad} unreadable or repeated" if bad else ""
                raise InputError(
                    f"{source.where(part, folder)}: {len(names)} images{beside}, {need} are needed "
                    "(--scoring-images, --extraction-images, --heldout-images)"
                )
            chosen += [(split, unit, name) for name in names[start : start + count]]
    return chosen
