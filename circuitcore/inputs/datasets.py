"""Data sets in hand as images: map-style ones of (image, label), Hugging Face's, lists of paths.

What is chosen, hashed and refused is the same as from a folder: ``train`` gives scoring images,
``val`` extraction and held-out images, each category's in the data set's own order.  A data set
alone is both: of each category the first images score, the next ones extract, then others test.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import PARTS, in_both
from circuitcore.inputs.images.listing import ALONE
from circuitcore.inputs.pixels import Preprocessing, decode, decode_bytes, decode_opened, read_file


class Part:
    """One data set: ``classes``, a label (an index into them) an image, and the images.

    ``files``: paths of the images, where they are files that nothing else touches.
    """

    def __init__(self, dataset: Any) -> None:
        self.kind = type(dataset).__name__
        self._lock = threading.Lock()  # a data set of the user's need not bear several threads
        self._dataset = dataset
        self.files: list[Path] | None = None
        self._column = ""  # of the images, in a Hugging Face data set
        if _is_paths(dataset):
            names = sorted({str(label) for _, label in dataset})
            self.classes = names
            self.labels = [names.index(str(label)) for _, label in dataset]
            self.files = [Path(path) for path, _ in dataset]
            return
        if hasattr(dataset, "features") and hasattr(dataset, "cast_column"):
            self._read_columns(dataset)
            return
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputError(
                f"images: {self.kind} is no map-style data set: it needs a length and items"
            )
        classes = _classes(dataset)
        if not classes:
            raise InputError(f"images: {self.kind} has no attribute 'classes', names of its labels")
        self.classes = [str(name) for name in classes]
        if twice := {name for name in self.classes if self.classes.count(name) > 1}:
            raise InputError(f"images: two labels of {self.kind} are called {min(twice)!r}")
        if _plain_samples(dataset):
            self.files = [Path(path) for path, _ in dataset.samples]
        self.labels = self._labels()
        if self.files is None and self.labels and self.content(0) != self.content(0):
            raise InputError(
                f"images: {self.kind} gives another image each time: its transform is random; give "
                "the one for evaluation"
            )

    def _read_columns(self, dataset: Any) -> None:
        """A Hugging Face data set: its image column and its label column, by their kinds."""
        kinds = {name: type(kind).__name__ for name, kind in dataset.features.items()}
        found = [[n for n, kind in kinds.items() if kind == k] for k in ("Image", "ClassLabel")]
        if not all(len(names) == 1 for names in found):
            raise InputError(
                f"images: one Image and one ClassLabel column are needed, there are {kinds}"
            )
        (image,), (label,) = found
        import datasets

        plain = dataset.with_format(None)
        self.classes = list(plain.features[label].names)
        self.labels = self._checked(list(plain[label]))
        self._column = image
        self._raw = plain.cast_column(image, datasets.Image(decode=False))

    def _labels(self) -> list[int]:
        if self.files is not None:
            return self._checked([label for _, label in self._dataset.samples])
        known = getattr(self._dataset, "targets", None)
        if known is None:  # every item is made once for its label
            known = [self._item(i)[1] for i in range(len(self._dataset))]
        if len(known) != len(self._dataset):
            raise InputError(f"images: {self.kind} has {len(self._dataset)} items but {len(known)} "
                             "targets")  # fmt: skip
        return self._checked(list(known))

    def _item(self, position: int) -> Any:
        """An item (image, label).  Raises InputError where it is none."""
        try:
            item = self._dataset[position]
            if isinstance(item, tuple | list) and len(item) >= 2:
                return item
        except Exception as error:
            raise InputError(f"images: item {position} of {self.kind}: {error}") from error
        raise InputError(f"images: item {position} of {self.kind} is no (image, label)")

    def _checked(self, given: list[Any]) -> list[int]:
        try:
            labels = [int(label) for label in given]
        except (TypeError, ValueError):
            raise InputError(f"images: labels of {self.kind} are no numbers") from None
        if any(label != value for label, value in zip(labels, given, strict=True)):
            raise InputError(f"images: labels of {self.kind} are no whole numbers")
        wrong = sorted({label for label in labels if not 0 <= label < len(self.classes)})
        if wrong:
            raise InputError(f"images: label {wrong[0]} of {self.kind} has no name in 'classes'")
        return labels

    @property
    def holds_files(self) -> bool:
        """Whether it stores images as files, which are decoded here as those of a folder are."""
        return bool(self._column)

    @cached_property
    def by_class(self) -> dict[str, list[int]]:
        """Positions of each class's images, in order."""
        found: dict[str, list[int]] = {}
        for position, label in enumerate(self.labels):
            found.setdefault(self.classes[label], []).append(position)
        return found

    def opened(self, position: int) -> Any:
        """The image, or the tensor that the data set makes of it."""
        with self._lock:
            return self._item(position)[0]

    def content(self, position: int, where: str = "images") -> bytes:
        """What the image is decoded from: the file's bytes, else its pixels."""
        if self.files is not None:
            return read_file(self.files[position], f"{where}: {self.files[position]}")
        if self.holds_files:
            with self._lock:
                stored = self._raw[position][self._column]
            if stored is None:
                raise InputError(f"{where}: there is no image")
            file = stored["path"]
            content: bytes = stored["bytes"] or read_file(Path(file), f"{where}: {file}")
            return content
        found = self.opened(position)
        if isinstance(found, Image.Image):
            if found.mode in ("P", "PA"):  # its pixels mean nothing without its palette
                found = found.convert("RGBA")
            return f"{found.mode}{found.size}".encode() + found.tobytes()
        return np.ascontiguousarray(torch.as_tensor(found).detach().cpu().numpy()).tobytes()


def _classes(dataset: Any) -> Any:
    """Names of the labels, of what a Subset or ConcatDataset is made of where it has none."""
    while dataset is not None and not getattr(dataset, "classes", None):
        several = getattr(dataset, "datasets", None)
        dataset = several[0] if several else getattr(dataset, "dataset", None)
    return getattr(dataset, "classes", None)


def _is_paths(dataset: Any) -> bool:
    """Whether it is a list of (path, label)."""
    return (
        isinstance(dataset, list | tuple)
        and len(dataset) > 0
        and all(len(item) == 2 and isinstance(item[0], str | Path) for item in dataset)
    )


def _plain_samples(dataset: Any) -> bool:
    """Whether its images are files as torchvision's ImageFolder loads them, and no more."""
    names = ("transform", "target_transform", "transforms")
    loader = getattr(getattr(dataset, "loader", None), "__name__", "")
    return (
        hasattr(dataset, "samples")
        and loader == "default_loader"
        and all(getattr(dataset, name, None) is None for name in names)
    )


class Datasets:
    """Images of ``{"train": data set, "val": data set}``, or of one data set split in its order.

    ``scoring``: scoring images a category, which a data set alone gives first; ``place``: where it
    is stored, if it is.  Names of images are ``train/17``: part and position.  Raises InputError
    where a data set is none, or a category is in one part alone.
    """

    def __init__(self, given: Any, scoring: int, place: str = "") -> None:
        if isinstance(given, Mapping) and set(given) != set(PARTS):
            keys = ", ".join(map(repr, given))
            raise InputError(f"images: data sets by name are 'train' and 'val', not {keys}")
        self.alone = not isinstance(given, Mapping)
        if self.alone:
            both = Part(given)
            self._parts = {"train": both, "val": both}
        else:
            self._parts = {name: Part(given[name]) for name in PARTS}
        self._scoring, self._place = scoring, place

    @property
    def place(self) -> str:
        """Where it is stored, or ``in hand`` and of what kind."""
        if self._place:
            return self._place
        kinds = dict.fromkeys(part.kind for part in self._parts.values())
        return f"in hand: {', '.join(kinds)}"

    def parts(self) -> dict[str, list[str]]:
        """Classes that have images, by part."""
        return {name: sorted(self._parts[name].by_class) for name in PARTS}

    def categories(self) -> list[str]:
        """Classes that have images in both parts, sorted."""
        return in_both(self.parts(), self.where())

    def notes(self) -> list[str]:
        """That one data set alone is split."""
        return [ALONE] if self.alone else []

    def listed(self, part: str, category: str) -> list[str]:
        """In the data set's order; of one alone the first ``scoring`` are train's."""
        positions = self._parts[part].by_class.get(category, [])
        if self.alone:
            first, rest = positions[: self._scoring], positions[self._scoring :]
            positions = first if part == "train" else rest
        return [f"{part}/{position}" for position in positions]

    def where(self, *name: str) -> str:
        """``images: val/17``."""
        start = f"--images {self._place}" if self._place else "images"
        return f"{start}: {'/'.join(name)}" if name else start

    def sha256(self, name: str) -> str:
        """Of the file's bytes where there is a file, else of the image's pixels."""
        return hashlib.sha256(self._content(name)).hexdigest()

    def _content(self, name: str) -> bytes:
        part, position = self._found(name)
        return part.content(position, self.where(name))

    def pixels(self, name: str, preprocessing: Preprocessing) -> np.ndarray:
        """One image, decoded: a file as one of a folder is."""
        part, position = self._found(name)
        if part.files is not None:
            return decode(part.files[position], preprocessing)
        if part.holds_files:
            return decode_bytes(self._content(name), self.where(name), preprocessing)
        return decode_opened(lambda: part.opened(position), self.where(name), preprocessing)

    def _found(self, name: str) -> tuple[Part, int]:
        part, _, position = name.partition("/")
        return self._parts[part], int(position)
