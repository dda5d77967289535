"""Which kind of source ``--images`` names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import PARTS, Folder, Images
from circuitcore.inputs.images import index, tar
from circuitcore.inputs.images.listing import Listing, listing
from circuitcore.inputs.images.policy import is_image
from circuitcore.inputs.images.stored import is_stored, read_stored
from circuitcore.inputs.pixels import read_file

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_FILES = 100_000


def open_images(text: str, scoring: int, *, labelled: bool = True) -> Images:
    """The images that ``text`` names.

    ``bundled``; a folder in ImageNet's layout, of one folder a category, of tar files, or that
    ``save_to_disk`` wrote; an index (.csv, .tsv, .parquet); a tar file, or several as
    ``shard-{000..011}.tar`` or ``shard-*.tar``.  ``scoring``: scoring images a category, which a
    data set without train and val gives first.  ``labelled``: whether folders in a folder are its
    categories.  Raises InputError saying what is expected.
    """
    if text == "bundled":
        from circuitcore.bundled import IMAGES

        return Folder(Path(IMAGES))
    path = Path(text).expanduser()
    lowered = path.name.lower()
    if path.is_dir():
        return _folder(path, scoring, labelled)
    if lowered.endswith(index.ENDINGS):
        return index.read_index(path, scoring)
    if lowered.endswith(tar.COMPRESSED):
        raise InputError(f"--images {text}: compressed: unpack it once, for random access (gunzip)")
    if lowered.endswith(tar.ENDING):
        files = [path] if path.is_file() else list(_several(path))
        return tar.read_tars(files, str(path.resolve() if path.is_file() else path), scoring)
    if path.exists():
        raise InputError(
            f"--images {text}: neither a folder, an index (.csv, .tsv, .parquet) nor a tar file"
        )
    raise InputError(f"--images {text}: no such folder")


def _folder(path: Path, scoring: int, labelled: bool) -> Images:
    if is_stored(path):
        return read_stored(path, scoring)
    inside = [p for p in path.iterdir() if not p.name.startswith(".")]
    folders = sorted(p for p in inside if p.is_dir())
    tars = sorted(p for p in inside if p.name.lower().endswith(tar.ENDING))
    if tars and not folders:
        return tar.read_tars(tars, str(path.resolve()), scoring)
    if labelled and folders and not any((path / part).exists() for part in PARTS):
        return image_folder(path, folders, scoring)
    return Folder(path)


def image_folder(root: Path, folders: list[Path], scoring: int) -> Images:
    """One data set alone of a folder a category; `Folder`, which says what is wrong, if none is."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for folder in folders:
            for name in sorted(p.name for p in folder.iterdir() if is_image(p.name)):
                yield "", folder.name, f"{folder.name}/{name}"

    found = list(rows())
    if not found:
        return Folder(root)

    def read(name: str) -> bytes:
        return read_file(root / name, f"--images {root}: {name}")

    made: Listing = listing(str(root.resolve()), found, read, scoring)
    return made


def _several(path: Path) -> Iterator[Path]:
    """The files of a pattern, sorted; each of a range of numbers must be there."""
    if (braces := BRACES.search(path.name)) is None:
        if not any(c in path.name for c in "*?["):
            raise InputError(f"--images {path}: no such file")
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise InputError(f"--images {path}: no such files")
        yield from found
        return
    first, last = (int(each) for each in braces.groups())
    if not 0 <= last - first < MOST_FILES:
        raise InputError(f"--images {path}: no range of files")
    for number in range(first, last + 1):
        told = path.with_name(path.name.replace(braces[0], f"{number:0{len(braces[1])}}", 1))
        yield from _several(told) if BRACES.search(told.name) else [told]
