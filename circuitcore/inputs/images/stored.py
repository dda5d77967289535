"""A Hugging Face data set on disk, as ``save_to_disk`` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.datasets import Datasets
from circuitcore.inputs.images.listing import PART_OF

MARKS = ("dataset_dict.json", "state.json")  # of several splits, of one


def is_stored(folder: Path) -> bool:
    """Whether a folder is one."""
    return any((folder / mark).is_file() for mark in MARKS)


def read_stored(folder: Path, scoring: int) -> Datasets:
    """The data set: its train split scores, val (else test) extracts and tests; one alone is split.

    Needs the package ``datasets``; nothing is fetched.  Raises UsageError where that is missing,
    InputError where the files are damaged or splits cannot be told.
    """
    where = f"--images {folder}"
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{where}: a Hugging Face data set needs: pip install datasets") from None
    try:
        found: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow's, datasets' own, json's ...
        raise InputError(f"{where}: no whole data set: {error}") from None
    if not (folder / MARKS[0]).is_file():
        return Datasets(found, scoring, str(folder.resolve()))
    splits: dict[str, Any] = {}
    for name, split in found.items():
        part = PART_OF.get(name.lower())
        if part in splits or not part:
            listed = ", ".join(json.dumps(n) for n in found)
            raise InputError(f"{where}: its splits are {listed}; train and val (or test) are read")
        splits[part] = split
    splits.setdefault("val", splits.pop("test", None))
    if set(splits) - {"test"} != {"train", "val"} or splits["val"] is None:
        raise InputError(f"{where}: its splits are {', '.join(found)}; train and val are needed")
    parts = {"train": splits["train"], "val": splits["val"]}
    return Datasets(parts, scoring, str(folder.resolve()))
