"""Read a weights file without trusting it: safetensors first, pickles only when asked for.

The safetensors library refuses most malformed files; what it lets through (duplicate names, names
that are paths) is refused here.  A ``.pt`` is read with ``weights_only=True``, so code inside it is
never run.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcore.errors import InputError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
LARGEST_HEADER = 100 * 2**20  # the format's own limit


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked for duplicate and path-like names.

    Raises InputError where the file is too short, its header is not JSON, or names repeat.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            raise InputError(f"{path}: the header names a tensor twice; write the file anew")
        return seen

    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= size <= min(LARGEST_HEADER, path.stat().st_size - 8):
                raise InputError(f"{path}: not a whole safetensors file (its header is cut off)")
            header: dict[str, Any] = json.loads(file.read(size), object_pairs_hook=unique)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: not a safetensors file: its header is no table of tensors")
    for name in header:
        if ".." in name.split("/") or name.startswith("/") or "\\" in name or "\0" in name:
            raise InputError(f"{path}: the tensor name {name!r} is a path; refused")
    return header


def read_weights(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a weights file on the CPU.

    Raises InputError where the file is malformed, or is a pickle and ``allow_pickle`` is not set.
    """
    if path.suffix.lower() in PICKLES:
        return _read_pickle(path, allow_pickle)
    read_header(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None


def _read_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not allow_pickle:
        raise InputError(
            f"{path}: a pickle file can run code when it is read. Convert it to safetensors "
            "(safetensors.torch.save_file), or pass --allow-pickle if you trust where it came from"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as plain weights: {reason}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path}: holds no state dict (a table of names and tensors)")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes, types and bytes in sorted order: one value however stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
