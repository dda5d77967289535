"""Large arrays in unnamed files: the system writes them out when memory runs short.

Such a file vanishes with the last process that has it open.  Worker processes inherit it by its
descriptor, so that what categories share is decoded and computed once for all of them.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from typing import IO

import numpy as np

UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Scratch:
    """Arrays by name, their files kept open so that other processes can be given them."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[IO[bytes], np.ndarray]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array of zeros, or the one made under this name before."""
        if name in self._files:
            return self._files[name][1]
        file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it may be given on
        _reserve(file, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        found = np.memmap(file, dtype=dtype, mode="w+", shape=shape)
        self._files[name] = file, found
        return found

    def __del__(self) -> None:
        """Close the files; arrays that are still used keep their memory."""
        for file, _ in self._files.values():
            file.close()

    @property
    def descriptors(self) -> list[int]:
        """What a child process must inherit (``pass_fds`` of `subprocess.Popen`)."""
        return [file.fileno() for file, _ in self._files.values()]

    def described(self) -> str:
        """All that `inherited` needs in a child process, as text."""
        return json.dumps(
            {
                name: [file.fileno(), array.dtype.str, array.shape]
                for name, (file, array) in self._files.items()
            }
        )


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the room on the disk now: a mapped page without any would kill the process (SIGBUS).

    Raises OSError naming the folder.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return
        file.close()
        said = f"{error.strerror} for {size / 1e6:,.0f} MB (TMPDIR=FOLDER names another one)"
        raise OSError(error.errno, said, tempfile.gettempdir()) from None


def inherited(described: str) -> dict[str, np.ndarray]:
    """The arrays of a parent's `Scratch`, by name; what is written to them stays in this process.

    Raises OSError where the descriptors were not inherited.
    """
    found: dict[str, np.ndarray] = {}
    for name, (descriptor, dtype, shape) in json.loads(described).items():
        with os.fdopen(descriptor, "rb") as file:
            found[name] = np.memmap(file, dtype=np.dtype(dtype), mode="c", shape=tuple(shape))
    return found
