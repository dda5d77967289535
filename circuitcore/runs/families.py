"""A file of `reproduce`: what a family of readings found in one category, and its masks.

The record stands in the header as JSON, the masks are bits in numpy's packbits order, one uint8
tensor ``stage/level/layer`` each; a sha256 of both tells when the file was damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.machine.files import write_atomically
from circuitcore.runs.circuitfile import packed_bits

FOLDER = "reproduction"
SHAPES = "shapes"


def write_family(path: Path, record: str, masks: Mapping[str, Tensor]) -> None:
    """Commit a family: its record as JSON, and bool masks.  Raises OSError."""
    packed = packed_bits(masks)
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    header = {"record": record, SHAPES: shapes}
    header["sha256"] = _digest(header, {name: bits.numpy() for name, bits in packed.items()})
    if not packed:  # the format has no file without a tensor
        packed = {"": torch.zeros(0, dtype=torch.uint8)}
    write_atomically(path, save(packed, metadata=header))


def read_family(path: Path) -> str:
    """The record of a family's file.  Raises InputError where it is not there, or damaged."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys() if name}  # noqa: SIM118
        if _digest(header, packed) != header["sha256"]:
            raise InputError(f"{path}: damaged: its content does not match its sha256")
        return header["record"]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: damaged: {error}") from None


def mask_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the masks of a file that `read_family` has read."""
    with safe_open(path, "np") as file:
        found: dict[str, list[int]] = json.loads(file.metadata()[SHAPES])
    return found


def mask_bits(path: Path, name: str) -> np.ndarray:
    """One mask's bits, uint8, of a file that `read_family` has read."""
    with safe_open(path, "np") as file:
        bits: np.ndarray = file.get_tensor(name)
    return bits


def _digest(header: Mapping[str, str], packed: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256("\0".join((header["record"], header[SHAPES])).encode())
    for name in sorted(packed):
        digest.update(name.encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()
