"""Families on disk: one file a category and family, whose presence is the commit.

``RUN/reproduction/KEY.safetensors``: what the readings found as JSON in the header, and the masks
of the circuits chosen, bit-packed in numpy's order, as ``stage/level/layer``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.extraction.readings import Read
from circuitcore.machine.files import write_atomically
from circuitcore.records import Record
from circuitcore.runs.circuitfile import packed_bits

FOLDER = "reproduction"
SHAPES = "shapes"


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
    packed = packed_bits(masks)
    header = {
        "record": record.model_dump_json(),
        SHAPES: json.dumps({name: list(mask.shape) for name, mask in masks.items()}),
    }
    header["sha256"] = _digest(header, {name: bits.numpy() for name, bits in packed.items()})
    if not packed:  # the format has no file without a tensor
        packed = {"": torch.zeros(0, dtype=torch.uint8)}
    write_atomically(path, save(packed, metadata=header))


def read(path: Path) -> FamilyRecord | None:
    """What a family found; None where it is not done or its file is damaged: made anew."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys() if name}  # noqa: SIM118
        if _digest(header, packed) != header["sha256"]:
            return None
        return FamilyRecord.model_validate_json(header["record"])
    except (SafetensorError, OSError, KeyError, ValueError, ValidationError):
        return None


def shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the masks of a file that `read` has read."""
    with safe_open(path, "np") as file:
        found: dict[str, list[int]] = json.loads(file.metadata()[SHAPES])
    return found


def mask_bits(path: Path, name: str) -> np.ndarray:
    """One mask's bits, uint8, of a file that `read` has read."""
    with safe_open(path, "np") as file:
        bits: np.ndarray = file.get_tensor(name)
    return bits


def _digest(header: Mapping[str, str], packed: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256("\0".join((header["record"], header[SHAPES])).encode())
    for name in sorted(packed):
        digest.update(name.encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()
