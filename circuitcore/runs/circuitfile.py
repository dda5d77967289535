"""A circuit on disk: one safetensors file a category, whose presence is the commit.

The masks are bits in numpy's packbits order, one uint8 tensor ``mask.<layer>`` a layer, row-major
over the layer's relevant weights (of the last Linear one row); the record, the shapes and the
unit's key stand in the header as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.inputs.weightfile import read_header
from circuitcore.machine.files import write_atomically
from circuitcore.records import Category, Found, Target

FORMAT = "circuitcore.circuit/1"
TARGET = "target"  # what a unit file says it is of where that is no category


@dataclass(frozen=True)
class StoredCircuit:
    """A unit file: its key, its record, and bool masks by layer (none where undefined)."""

    key: str
    record: Found
    kept: dict[str, Tensor]


def write_circuit(path: Path, key: str, record: Found, kept: Mapping[str, Tensor]) -> None:
    """Commit one category: masks bit-packed, the record in the header.  Raises OSError."""
    packed = {f"mask.{name}": bits for name, bits in packed_bits(kept).items()}
    header = {
        "format": FORMAT,
        "key": key,
        "shapes": json.dumps({name: list(mask.shape) for name, mask in kept.items()}),
        "record": record.model_dump_json(),
    }
    if isinstance(record, Target):
        header["of"] = TARGET
    header["sha256"] = _digest(header, {name: v.numpy() for name, v in packed.items()})
    write_atomically(path, save(packed, metadata=header))


def packed_bits(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool masks as bits in numpy's packbits order, uint8 by layer, on the CPU.

    On a GPU they are packed there, all layers together: one bit a weight crosses, in one copy.
    """
    if not kept or next(iter(kept.values())).device.type == "cpu":
        return {
            name: torch.from_numpy(np.packbits(mask.numpy().reshape(-1)))
            for name, mask in kept.items()
        }
    device = next(iter(kept.values())).device
    parts, sizes, none = [], [], torch.zeros(8, dtype=torch.bool, device=device)
    for mask in kept.values():
        short = -mask.numel() % 8
        parts += [mask.reshape(-1), none[:short]]
        sizes.append((mask.numel() + short) // 8)
    place = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    bits = torch.cat(parts).view(torch.uint8).view(-1, 8) << place
    whole = bits.sum(1, dtype=torch.uint8).cpu()
    return dict(zip(kept, whole.split(sizes), strict=True))


def _digest(header: Mapping[str, str], packed: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256("\0".join(header[k] for k in ("key", "shapes", "record")).encode())
    for name in sorted(packed):
        digest.update(name.encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()


def read_record(path: Path) -> tuple[str, Found]:
    """Key and record of a unit file, without its masks.  Raises InputError if it is damaged."""
    header = read_header(path).get("__metadata__", {})
    try:
        if header["format"] != FORMAT:
            raise InputError(f"{path}: format {header['format']!r}, this version reads {FORMAT!r}")
        kind = Target if header.get("of") == TARGET else Category
        return header["key"], kind.model_validate_json(header["record"])
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: not a circuit of circuitcore, or damaged: {error}") from None


def read_circuit(path: Path) -> StoredCircuit:
    """A whole unit file.  Raises InputError where it is damaged or its masks do not add up."""
    key, record = read_record(path)
    shapes, packed = _checked(path)
    kept = {}
    try:
        for name, shape in shapes.items():
            count = int(np.prod(shape, dtype=np.int64))
            bits = np.unpackbits(packed[f"mask.{name}"], count=count).astype(bool)
            kept[name] = torch.from_numpy(bits).view(shape)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    return StoredCircuit(key, record, kept)


def checked_key(path: Path) -> str:
    """The key of a unit file whose content matches its sha256; its masks stay packed.

    Raises InputError where it is damaged.
    """
    _checked(path)
    return read_record(path)[0]


def _checked(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Shapes and packed masks of a unit file, held against its sha256."""
    try:
        header: dict[str, str] = read_header(path)["__metadata__"]
        shapes: dict[str, Any] = json.loads(header["shapes"])
        packed = {f"mask.{name}": mask for name, mask in packed_masks(path).items()}
        if _digest(header, packed) != header["sha256"]:
            raise InputError(f"{path}: damaged: its content does not match its sha256")
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    return shapes, packed


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of every layer's relevant weights, in module order."""
    shapes: dict[str, list[int]] = json.loads(read_header(path)["__metadata__"]["shapes"])
    return shapes


def mapped_mask(path: Path, layer: str) -> np.ndarray:
    """One layer's bit-packed mask as a memory map of the unit file: nothing is read until used."""
    header = read_header(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    begin, end = header[f"mask.{layer}"]["data_offsets"]
    return np.memmap(path, np.uint8, "r", offset=start + begin, shape=(end - begin,))


def packed_masks(path: Path) -> dict[str, np.ndarray]:
    """The bit-packed masks of a unit file by layer, uint8, as they lie on disk."""
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            return {name.removeprefix("mask."): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
