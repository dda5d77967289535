"""Work through images a chunk at a time, with smaller chunks where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

import torch

from circuitcore.errors import DeviceError


def in_chunks(
    total: int,
    size: int,
    work: Callable[[slice], None],
    *,
    fallback: bool = True,
    note: Callable[[str], None] = lambda message: None,
) -> None:
    """Call ``work`` with slices of at most ``size`` that cover ``total`` images in order.

    Where ``work`` runs out of memory its slice is tried again in halves, and ``note`` is told.
    Raises DeviceError where one image does not fit, or ``fallback`` is off.
    """
    start = 0
    while start < total:
        part = slice(start, min(start + size, total))
        count = part.stop - part.start
        try:
            work(part)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if not fallback or count == 1:
                raise DeviceError(
                    f"out of memory with {count} images at once: give a smaller --memory"
                    + ("" if fallback else ", or drop --no-fallback")
                ) from error
            size = count // 2
            note(f"out of memory with {count} images at once; going on with {size}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = part.stop


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)  # torch's CPU allocator has no type of its own
