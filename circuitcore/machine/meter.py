"""Memory that a run took, measured.  `circuitcore.engine.footprint` predicts it.

Counted is what the process holds beyond what it held at the start: on a CPU anonymous resident
memory (pages of mapped files, as the decoded images and the cached features are, are the system's
to drop), on a GPU what torch's allocator gave out.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import torch

INTERVAL = 0.01  # seconds between two looks at the process's memory


class Meter:
    """Peak bytes that this process takes beyond those at the start, while the block runs.

    ``held``: bytes of the run that were there before the start, and count too.  ``peak`` is set at
    the end.  On a CPU a thread looks every ``INTERVAL`` (a look takes about a
    microsecond); where there is no /proc, the high-water mark of all resident memory stands in.
    """

    def __init__(self, device: torch.device, held: int = 0) -> None:
        self.device, self.held = device, held
        self.peak = 0

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
            return self
        try:
            self._file = os.open("/proc/self/statm", os.O_RDONLY)
        except OSError:
            self._file = -1
            self._start = _high_water()
            return self
        self._start = self._most = self._anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type != "cuda" and self._file >= 0:
            self._done.set()
            self._thread.join()
        self.peak = self.so_far()
        if self.device.type != "cuda" and self._file >= 0:
            os.close(self._file)

    def so_far(self) -> int:
        """Peak bytes up to now, inside the block."""
        return self._peak() - self._start + self.held

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self._file < 0:
            return _high_water()
        return max(self._most, self._anonymous())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._most = max(self._most, self._anonymous())

    def _anonymous(self) -> int:
        """Resident bytes that no file stands behind."""
        _, resident, shared, *_ = os.pread(self._file, 200, 0).split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _high_water() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def return_freed_memory() -> None:
    """Have the C library return all it keeps for later, some milliseconds' work; else nothing."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "malloc_trim") else None
