"""Families on disk, ``RUN/reproduction/KEY.safetensors`` each, whose presence is the commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.extraction.readings import Read
from circuitcore.records import Record
from circuitcore.runs.families import FOLDER, read_family, write_family


class FamilyRecord(Record):
    """What one family found in one category.

    Multiply-adds: ``once`` of a forward-pass equivalent, ``work`` of the family, ``floor`` of its
    random masks.
    """

    category: str
    index: int
    readings: list[Read]
    once: int
    work: int
    floor: int
    seconds: float


def path_of(run: Path, key: str) -> Path:
    """The file of a family."""
    return run / FOLDER / f"{key}.safetensors"


def write(
    path: Path, record: FamilyRecord, kept: Mapping[tuple[str, int], Mapping[str, Tensor]]
) -> None:
    """Commit a family: its record, and the masks ``kept`` by stage and level.  Raises OSError."""
    masks = {
        f"{stage}/{t}/{layer}": mask for (stage, t), own in kept.items()
        for layer, mask in own.items()
    }  # fmt: skip
    write_family(path, record.model_dump_json(), masks)


def read(path: Path) -> FamilyRecord | None:
    """What a family found; None where it is not done or its file is damaged: made anew."""
    try:
        return FamilyRecord.model_validate_json(read_family(path))
    except (InputError, ValidationError):
        return None
