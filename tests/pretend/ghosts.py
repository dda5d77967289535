"""Tensors of a pretended device that are a shape alone, so that full-size networks cost nothing.

Where `State.host` is given, what is large and copied to a device or made there becomes a ghost, and
so does whatever is computed with one; a ghost's numbers are asked for only where they reach the
host.  Level bytes are real: scores of a ghost layer are those of a few thousand drawn at random,
each that of many weights (`levels.sample`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pretend.counts import site
from pretend.state import state

LARGE = 1 << 19  # elements from which a tensor is a ghost
TRUE = ("all_finite",)  # functions that ask whether all is well


def ghostly() -> bool:
    """Whether there are ghosts at all."""
    return state().host is not None


def is_ghost(tensor: torch.Tensor) -> bool:
    """Whether a tensor (what a wrapper holds) is a shape alone."""
    return tensor.device.type == "meta"


def faded(found: Any) -> Any:
    """Arguments with ghosts in the place of all tensors (lists and tuples too)."""
    if isinstance(found, torch.Tensor):
        return found if is_ghost(found) else found.to("meta")
    if isinstance(found, list | tuple):
        return type(found)(faded(each) for each in found)
    return torch.device("meta") if isinstance(found, torch.device) else found


def arrived(ghost: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """What a test gives for a ghost that reaches the host, in ``dtype``."""
    host = state().host
    assert host is not None
    found = host(site(), ghost).to(dtype or ghost.dtype)
    assert found.shape == ghost.shape, (site(), found.shape, ghost.shape)
    return found


def scalar(ghost: torch.Tensor) -> Any:
    """One number of a ghost: 0; a truth is False but for those who ask whether all is well."""
    place = site()
    if ghost.dtype == torch.bool:
        return any(place.endswith(name) for name in TRUE)
    return 0


def zeros(place: str, ghost: torch.Tensor) -> torch.Tensor:
    """A `State.host` that gives zeros, in memory that is not touched."""
    return torch.from_numpy(np.zeros(tuple(ghost.shape), np.uint8)).to(ghost.dtype)
