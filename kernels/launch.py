"""The one place a Triton kernel is launched from: on its tensors' device, within the grid's limits.

Triton launches on the *current* device, whatever its arguments live on, and a grid past the limits
of an axis fails in the driver with a message that names nothing; the interpreter checks neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

# CUDA C++ Programming Guide, "Compute Capabilities"; HIP allows more threads than these blocks
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Launch:
    """One call of `launch`, as it was asked for."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_record: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)`` on the device of the first tensor among them.

    ``options``: constants of the kernel and of the compiler.  Raises ValueError for a grid that no
    device takes: the axis that grows with the images has to be the first.
    """
    if any(size > most for size, most in zip(grid, MOST_PROGRAMS, strict=False)):
        raise ValueError(f"{kernel.__name__}: a grid of {grid} programs, at most {MOST_PROGRAMS}")
    if _record is not None:
        _record.append(Launch(kernel, grid, arguments, options))
        return
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it nothing is launched, only noted: what a launcher asks for, of tensors on "meta"."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before
