"""A circuit on disk: one safetensors file a category, whose presence is the commit.

The masks are bits in numpy's packbits order, one uint8 tensor ``mask.<layer>`` a layer, row-major
over the layer's relevant weights (of the last Linear one row); the record, the shapes, the unit's
key and what was said of single held-out images stand in the header as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.inputs.weightfile import read_header
from circuitcore.machine.files import write_atomically
from circuitcore.records import Category, Found, Target
from circuitcore.runs.images import decisions
from circuitcore.runs.images.decisions import Decision

FORMAT = "circuitcore.circuit/1"
TARGET = "target"  # what a unit file says it is of where that is no category
OF_RECORD = "record_sha256"  # so that a record can be trusted without its masks being read
WHOLE = "sha256"
SIDES = 8  # dimensions of a layer's weights, at most


@dataclass(frozen=True)
class StoredCircuit:
    """A unit file: its key, its record, and bool masks by layer (none where undefined)."""

    key: str
    record: Found
    kept: dict[str, Tensor]


def write_circuit(
    path: Path, key: str, record: Found, kept: Mapping[str, Tensor],
    decided: Sequence[Decision] | None = None,
) -> None:  # fmt: skip
    """Commit one category: masks bit-packed, the record in the header.  Raises OSError.

    ``decided``: what its circuit said of single held-out images, where that is known.
    """
    packed = {f"mask.{name}": bits for name, bits in packed_bits(kept).items()}
    header = {
        "format": FORMAT,
        "key": key,
        "shapes": json.dumps({name: list(mask.shape) for name, mask in kept.items()}),
        "record": record.model_dump_json(),
    }
    if isinstance(record, Target):
        header["of"] = TARGET
    if decided is not None:
        header[decisions.TEXT] = decisions.as_text(decided)
    header[OF_RECORD] = _of_record(header)
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
    digest = hashlib.sha256(_told(header))
    for name in sorted(packed):
        digest.update(name.encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()


def _of_record(header: Mapping[str, str]) -> str:
    return hashlib.sha256(_told(header)).hexdigest()


def _told(header: Mapping[str, str]) -> bytes:
    told = [header[k] for k in ("key", "shapes", "record")]
    told += [header[k] for k in (decisions.TEXT,) if k in header]
    return "\0".join(told).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Header:
    """What the header of a unit file says, its own parts held against one another.

    ``shapes``: of every layer's relevant weights, in module order; ``sha256``: of all of it;
    ``alone``: whether the record was held against a digest of its own (not in older files).
    """

    key: str
    record: Found
    shapes: dict[str, list[int]]
    sha256: str
    alone: bool
    text: Mapping[str, str]


def read_unit_header(path: Path) -> Header:
    """Everything in a unit file but its masks.  Raises InputError where it is damaged."""
    header = read_header(path).get("__metadata__")
    if not isinstance(header, dict) or not all(isinstance(v, str) for v in header.values()):
        raise InputError(f"{path}: not a circuit of circuitcore, or damaged: no table of texts")
    try:
        if header["format"] != FORMAT:
            raise InputError(f"{path}: format {header['format']!r}, this version reads {FORMAT!r}")
        kind = Target if header.get("of") == TARGET else Category
        shapes = _shapes(json.loads(header["shapes"]))
        if OF_RECORD in header and header[OF_RECORD] != _of_record(header):
            raise InputError(f"{path}: damaged: its record does not match its sha256")
        record = kind.model_validate_json(header["record"])
        alone = OF_RECORD in header
        return Header(header["key"], record, shapes, header[WHOLE], alone, header)
    except (KeyError, TypeError, ValueError, RecursionError) as error:  # and ValidationError
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not a circuit of circuitcore, or damaged: {said}") from None


def read_decisions(path: Path) -> list[Decision] | None:
    """What the circuit in a unit file said of single held-out images; None where it does not say.

    Runs of earlier versions and other targets do not.  Raises InputError where it is damaged.
    """
    header = read_header(path).get("__metadata__")
    try:
        if not isinstance(header, dict) or decisions.TEXT not in header:
            return None
        if header[OF_RECORD] != _of_record(header):
            raise InputError(f"{path}: damaged: its record does not match its sha256")
        return decisions.of_text(header[decisions.TEXT])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a circuit of circuitcore, or damaged: {error}") from None


def _shapes(found: Any) -> dict[str, list[int]]:
    """Shapes as a header should have them.  Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("shapes are no table")
    for name, shape in found.items():
        whole = isinstance(shape, list) and 0 < len(shape) <= SIDES
        if not whole or not all(type(side) is int and 0 < side < 2**40 for side in shape):
            raise ValueError(f"the shape of {name!r} is {str(shape)[:60]}")
        if math.prod(shape) >= 2**50:
            raise ValueError(f"the shape of {name!r} is {shape}")
    return found


def read_record(path: Path) -> tuple[str, Found]:
    """Key and record of a unit file, without its masks.  Raises InputError if it is damaged.

    In a file of an earlier version the record has no digest of its own: all of it is read.
    """
    header = read_unit_header(path)
    if not header.alone:
        _checked(path)
    return header.key, header.record


def read_circuit(path: Path) -> StoredCircuit:
    """A whole unit file.  Raises InputError where it is damaged or its masks do not add up."""
    header, packed = _checked(path)
    kept = {}
    for name, shape in header.shapes.items():
        bits = np.unpackbits(packed[f"mask.{name}"], count=math.prod(shape)).astype(bool)
        kept[name] = torch.from_numpy(bits).view(shape)
    return StoredCircuit(header.key, header.record, kept)


def checked_key(path: Path) -> str:
    """The key of a unit file whose content matches its sha256; its masks stay packed.

    Raises InputError where it is damaged.
    """
    return _checked(path)[0].key


def _checked(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Header and packed masks of a unit file, held against its sha256 and one another."""
    header = read_unit_header(path)
    packed = {f"mask.{name}": mask for name, mask in packed_masks(path).items()}
    if _digest(header.text, packed) != header.sha256:
        raise InputError(f"{path}: damaged: its content does not match its sha256")
    if packed.keys() != {f"mask.{name}" for name in header.shapes}:
        raise InputError(f"{path}: damaged: masks and shapes are of other layers")
    for name, shape in header.shapes.items():
        mask, weights = packed[f"mask.{name}"], math.prod(shape)
        if mask.dtype != np.uint8 or mask.shape != (-(-weights // 8),):
            raise InputError(
                f"{path}: damaged: the mask of {name!r} is {mask.dtype} {list(mask.shape)}, "
                f"for {weights:,} weights"
            )
    return header, packed


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of every layer's relevant weights, in module order.  Raises InputError."""
    return read_unit_header(path).shapes


@dataclass(frozen=True)
class StoredMask:
    """One layer's bit-packed mask in its unit file: a slice of it is read when it is asked for.

    A memory map would do but for its pages: those of a thousand masks count as this process's own.
    """

    path: Path
    offset: int
    length: int
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.length)
        count = max(stop - start, 0)
        return np.fromfile(self.path, np.uint8, count, offset=self.offset + start)


def stored_mask(path: Path, layer: str) -> StoredMask:
    """One layer's bit-packed mask where it lies: nothing is read until used.

    Its content is not checked (`checked_key` does).  Raises InputError where the file is too short
    for what its header says.
    """
    header = read_header(path)
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        begin, end = header[f"mask.{layer}"]["data_offsets"]
        if not 0 <= begin < end <= path.stat().st_size - start:
            raise InputError(f"{path}: damaged: too short for the mask of {layer!r}")
        return StoredMask(path, start + begin, end - begin)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}") from None


def packed_masks(path: Path) -> dict[str, np.ndarray]:
    """The bit-packed masks of a unit file by layer, uint8, as they lie on disk."""
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            return {name.removeprefix("mask."): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
