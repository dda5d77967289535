"""Images that an index lists: names by part and category, and how the bytes of one are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import PARTS, in_both
from circuitcore.inputs.pixels import Preprocessing, decode_bytes

ALONE = ("one data set: of each category the first images score, the next ones extract, "
         "others test")  # fmt: skip
# what parts are called elsewhere; test images are taken for val's where there is no val
PART_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val",
           "validation": "val", "test": "test", "testing": "test", "": ""}  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """Names of images by part and category; without parts (``alone``) the first ones score.

    ``read``: the file's bytes of a name, raises InputError; ``scoring``: scoring images a category,
    which a data set alone gives first.
    """

    place: str
    members: Mapping[str, Mapping[str, list[str]]]
    read: Callable[[str], bytes]
    scoring: int
    told: tuple[str, ...] = field(default=())

    @property
    def alone(self) -> bool:
        """Whether it is one data set that is split in its order."""
        return set(self.members) == {""}

    def parts(self) -> dict[str, list[str]]:
        """Categories by part."""
        return {part: sorted(self.members["" if self.alone else part]) for part in PARTS}

    def categories(self) -> list[str]:
        """Those in both parts."""
        return in_both(self.parts(), self.where())

    def listed(self, part: str, category: str) -> list[str]:
        """In the order of the index."""
        if not self.alone:
            return list(self.members[part].get(category, []))
        names = self.members[""].get(category, [])
        return names[: self.scoring] if part == "train" else names[self.scoring :]

    def notes(self) -> list[str]:
        """How it is split, and what is passed over."""
        return [*([ALONE] if self.alone else []), *self.told]

    def where(self, *name: str) -> str:
        """``--images FILE: NAME``."""
        return f"--images {self.place}" + (f": {'/'.join(name)}" if name else "")

    def sha256(self, name: str) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """The file's bytes, decoded."""
        return decode_bytes(self.read(name), self.where(name), preprocessing)


def listing(
    place: str,
    rows: Iterable[tuple[str, str, str]],
    read: Callable[[str], bytes],
    scoring: int,
    told: Iterable[str] = (),
) -> Listing:
    """Of (part, category, name) rows in order; parts as `PART_OF` knows them.

    Raises InputError where parts are unknown or said of some images alone, and for a repeated name.
    """
    where = f"--images {place}"
    members: dict[str, dict[str, list[str]]] = {}
    seen: set[str] = set()
    for part, category, name in rows:
        known = PART_OF.get(part.strip().lower())
        if known is None:
            raise InputError(f"{where}: {name}: the split {part!r} is none of train, val and test")
        if name in seen:
            raise InputError(f"{where}: {name} stands there twice")
        seen.add(name)
        members.setdefault(known, {}).setdefault(category, []).append(name)
    if not members:
        raise InputError(f"{where}: no images")
    if set(members) == {""}:
        return Listing(place, members, read, scoring, tuple(told))
    notes = list(told)
    if "" in members:
        first = next(iter(next(iter(members[""].values()))))
        raise InputError(f"{where}: {first}: no split, where others have one")
    test = members.pop("test", None)
    if test is not None and "val" not in members:
        members["val"] = test
        notes.append("there is no val split: test images extract and test")
    elif test is not None:
        notes.append(f"{sum(map(len, test.values()))} images of the test split, passed over")
    for part in PARTS:
        if part not in members:
            raise InputError(f"{where}: no images of the {part} split")
    return Listing(place, members, read, scoring, tuple(notes))
