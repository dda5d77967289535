"""The mean inputs of a run's layers on disk, where pruned weights carry them.

``RUN/means.safetensors``, written before any circuit is: a circuit is its mask and these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitcore.errors import InputError
from circuitcore.machine.files import write_atomically
from circuitcore.network.ablation import carried

MEANS = "means.safetensors"
FORMAT = "circuitcore.means/1"


def write_means(folder: Path, inputs: Mapping[str, Tensor]) -> None:
    """Keep `Means.inputs`, float32 by layer.  Raises OSError."""
    own = {name: mean.contiguous().cpu() for name, mean in inputs.items()}
    header = {"format": FORMAT, "sha256": _digest(own)}
    write_atomically(folder / MEANS, save(own, metadata=header))


def read_means(folder: Path) -> dict[str, Tensor]:
    """`Means.inputs` of a run.  Raises InputError where they are not there, or damaged."""
    path = folder / MEANS
    if not path.exists():
        raise InputError(f"{path}: missing; run the sweep again")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {error}; delete it and run the sweep again") from None
    if header.get("format") != FORMAT or header.get("sha256") != _digest(found):
        raise InputError(f"{path}: damaged; delete it and run the sweep again")
    return found


def means_lost(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether pruned weights of a run carry means and these are not there."""
    return manifest["options"].get("ablate") == "mean" and not (folder / MEANS).exists()


def means_in(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """`read_means` of a run where pruned weights carry means; none where they carry nothing."""
    return read_means(folder) if manifest["options"].get("ablate") == "mean" else {}


def moved(weight: Tensor, pruned: Tensor, mean: Tensor) -> Tensor:
    """What the ``pruned`` weights (bool) carry on average: [out], on the weight's device."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    gone = torch.where(pruned, weight, 0)
    return carried(gone, mean.to(weight.device, dtype)).to(weight.dtype)


def _digest(means: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(means):
        digest.update(name.encode())
        digest.update(means[name].to(torch.float32).numpy().tobytes())
    return digest.hexdigest()
