"""Work through images a chunk at a time, with smaller chunks where memory runs out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from circuitcore.errors import DeviceError
from circuitcore.machine.device import empty_caches, exhausted

FULL = (  # what allocators and libraries say, not all of it as OutOfMemoryError
    "can't allocate memory",  # torch's on a CPU
    "CUDA out of memory",
    "HIP out of memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "ROCBLAS_STATUS_MEMORY_ERROR",
    "miopenStatusAllocFailed",
)
VAGUE = (  # what libraries say of many things, a device without memory among them
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "HIPBLAS_STATUS_NOT_INITIALIZED",
    "HIPBLAS_STATUS_INTERNAL_ERROR",
    "miopenStatusInternalError",
    "miopenStatusUnknownError",
)


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
            size = smaller(error, count, fallback, note)
            continue
        start = part.stop


def smaller(error: BaseException, count: int, fallback: bool, note: Callable[[str], None]) -> int:
    """How many images at once to go on with where ``count`` did not fit; ``note`` is told.

    Raises ``error`` itself where it is about something else, DeviceError where one image does not
    fit or ``fallback`` is off.
    """
    if not _out_of_memory(error):
        raise error
    if not fallback or count == 1:
        raise DeviceError(
            f"out of memory with {count} images at once: give a smaller --memory"
            + ("" if fallback else ", or drop --no-fallback")
        ) from error
    note(f"out of memory with {count} images at once; going on with {count // 2}")
    empty_caches()
    return count // 2


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whoever says so; of what may mean anything, where there is none."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    if any(words in said for words in FULL):
        return True
    return any(words in said for words in VAGUE) and exhausted()


@functools.cache
def loading_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a GPU that chunks are loaded on.

    The allocator keeps freed memory by stream: with a new one a look it could not be used again.
    """
    return torch.cuda.Stream(device)


class Ahead:
    """Values of chunks of images, those of the next chunk being loaded while one is worked on.

    ``load(part)``: values by name of the images ``part`` of ``total``, on ``device``.  On a GPU a
    thread calls it, one chunk at a time, on a stream of its own.  On a CPU loading would take the
    cores from the work, so a chunk is loaded when it is asked for, unless ``background``; so it is
    with ``direct``, where the values lie on the device already.
    """

    def __init__(
        self,
        load: Callable[[slice], dict[str, Tensor]],
        total: int,
        device: torch.device,
        background: bool = False,
        direct: bool = False,
    ) -> None:
        self._load, self._total, self._device = load, total, device
        gpu = device.type == "cuda" and not direct
        self._stream = loading_stream(device) if gpu else None
        self._pool = ThreadPoolExecutor(1, "load") if background or gpu else None
        self._next: tuple[slice, Future[dict[str, Tensor]]] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, part: slice) -> dict[str, Tensor]:
        """The values of ``part``; the images after it, as many again, are begun."""
        if self._pool is None:
            return self._load(part)
        begun, self._next = self._next, None
        if begun is None or begun[0] != part:  # the first, or memory ran out and chunks are smaller
            begun = (part, self._pool.submit(self._on_stream, part))
        values = begun[1].result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for value in values.values():
                value.record_stream(current)  # its memory is not given away before this is done
        following = slice(part.stop, min(2 * part.stop - part.start, self._total))
        if following.stop > following.start:
            self._next = (following, self._pool.submit(self._on_stream, following))
        return values

    def _on_stream(self, part: slice) -> dict[str, Tensor]:
        with torch.cuda.stream(self._stream):  # nothing where there is no stream
            return self._load(part)
