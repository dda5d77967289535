"""``RUN/exemplars.safetensors``: which images of the extraction set drive each unit most."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.machine.files import write_atomically
from circuitcore.runs.folder import RunFolder, canonical

EXEMPLARS = "exemplars.safetensors"
FORMAT = "circuitcore.exemplars/1"


@dataclass(frozen=True)
class Exemplars:
    """By layer, of each unit the images that drive it most, the strongest first.

    ``images``: their ``id`` in ``images.parquet``, int64 [units, k]; ``values``: the activation
    before the rectifier, its largest over positions, float32 [units, k].
    """

    images: Mapping[str, Tensor]
    values: Mapping[str, Tensor]


def write_exemplars(run: RunFolder, found: Exemplars) -> None:
    """Keep them beside the run's circuits.  Raises OSError."""
    own = {f"images.{name}": each.contiguous() for name, each in found.images.items()}
    own |= {f"values.{name}": each.contiguous() for name, each in found.values.items()}
    header = {"format": FORMAT, "of": _of(run), "sha256": _digest(own)}
    write_atomically(run.folder / EXEMPLARS, save(own, metadata=header))


def read_exemplars(run: RunFolder) -> Exemplars | None:
    """Those kept; None where there are none, or none of this run's model and images."""
    try:
        header, found = read_tensors(run.folder / EXEMPLARS)
    except (FileNotFoundError, InputError):
        return None
    if header.get("of") != _of(run):
        return None
    parts: dict[str, dict[str, Tensor]] = {"images": {}, "values": {}}
    for name, each in found.items():
        part, _, layer = name.partition(".")
        parts[part][layer] = each
    return Exemplars(**parts)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors.  Raises FileNotFoundError, and InputError where it is damaged."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            header = dict(file.metadata() or {})
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    if header.get("format") != FORMAT or header.get("sha256") != _digest(found):
        raise InputError(f"{path}: damaged: its content does not match its sha256")
    return header, found


def _of(run: RunFolder) -> str:
    """The configuration they were found under: model and images among it."""
    return hashlib.sha256(canonical(run.manifest["configuration"])).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
