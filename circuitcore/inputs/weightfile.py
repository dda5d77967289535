"""Read a weights file without trusting it: safetensors first, pickles only when asked for.

The safetensors library refuses most malformed files; what it lets through (duplicate names, names
that are paths) is refused here.  A ``.pt`` is read with ``weights_only=True``, so code inside it is
never run; of a whole module in it the weights are taken.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from circuitcore.errors import InputError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
REMEDY = "save torch's own state dict instead: torch.save(model.state_dict(), PATH)"
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


@dataclass(frozen=True)
class Stored:
    """What a weights file holds: ``state``, names and tensors on the CPU, with the versions torch
    keeps in its ``_metadata``; ``notes``: what was chosen of more than one, a line each.
    """

    state: OrderedDict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights(path: Path, *, allow_pickle: bool = False) -> Stored:
    """The tensors of a weights file on the CPU.

    Raises InputError where the file is malformed, or is a pickle and ``allow_pickle`` is not set.
    """
    if path.suffix.lower() in PICKLES:
        return _read_pickle(path, allow_pickle)
    read_header(path)
    try:
        return Stored(OrderedDict(load_file(path)))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None


def _read_pickle(path: Path, allow_pickle: bool) -> Stored:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not allow_pickle:
        raise InputError(
            f"{path}: a pickle file can run code when it is read. Convert it to safetensors "
            "(safetensors.torch.save_file), or pass --allow-pickle if you trust where it came from"
        )
    content: Any = unpickled(path)
    notes = []
    while isinstance(content, Mapping) and (found := _wrapped(content)):
        averaged = [key for key in content if "ema" in str(key).lower()]
        if averaged:
            notes.append(f"{path.name}: {found!r} is read, not {averaged[0]!r}, which it holds too")
        content = content[found]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: holds {_kind(content)}, no table of names and tensors; {REMEDY}")
    other = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if other:
        some = ", ".join(other[:4])
        raise InputError(f"{path}: no state dict: its {some} are no tensors; {REMEDY}")
    state = OrderedDict((str(k), v) for k, v in content.items())
    if isinstance(found_versions := getattr(content, "_metadata", None), Mapping):
        state._metadata = found_versions  # type: ignore[attr-defined]
    return Stored(state, tuple(notes))


def _wrapped(content: Mapping[Any, Any]) -> str | None:
    """The key under which a training script's checkpoint keeps the network."""
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping | nn.Module):
            return key
    return None


def _kind(content: object) -> str:
    return f"an empty {type(content).__name__}" if content == {} else f"a {type(content).__name__}"


def unpickled(path: Path) -> Any:
    """What a trusted pickle holds: tensors, plain values, and modules of classes that are modules.

    Code in the pickle is not run: classes are only those of `torch.nn.Module` that can be imported,
    each restored by setting its attributes.  Raises InputError naming anything else.
    """
    namespace: list[Any] = [argparse.Namespace]  # torchvision's training script keeps its own
    try:
        with torch.serialization.safe_globals(namespace):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = error
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive, or a damaged one: what was said first holds
        named = []
    classes = {name: _module_class(name) for name in named if name != "argparse.Namespace"}
    strange = sorted(name for name, found in classes.items() if found is None)
    if strange:
        raise InputError(
            f"{path}: needs {', '.join(strange[:3])}, which is not run: of Python objects only "
            f"modules whose classes can be imported here are read; {REMEDY}"
        ) from None
    if not classes:
        raise InputError(
            f"{path}: cannot be read as plain weights: {said_plainly(first)}"
        ) from None
    try:
        with torch.serialization.safe_globals([*namespace, *filter(None, classes.values())]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: a whole module that cannot be restored ({said_plainly(error)}); {REMEDY}"
        ) from None


def _module_class(name: str) -> type | None:
    """A class of modules by its full name, if that is what it names."""
    where, _, called = name.rpartition(".")
    if where.startswith(("torch.fx", "torch.jit", "torch.package")):  # these hold code
        return None
    try:
        found = getattr(importlib.import_module(where), called)
    except Exception:  # what an import raises is not ours
        return None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def said_plainly(error: BaseException) -> str:
    """A library's message whole, on one line, without the colour codes meant for a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    return " ".join(plain.split()) or type(error).__name__


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes, types and bytes in sorted order: one value however stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
