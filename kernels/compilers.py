"""The two just-in-time compilers, so that an operation's file reads the same where one is missing.

Triton exists on Linux only; an operation's file imports ``triton`` and ``tl`` from here and
decorates its kernels as usual.  Where Triton is absent the decorators return the plain function:
it is never launched, because `dispatch.choose` never picks it.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    import triton
    import triton.language as tl
else:  # pragma: no cover - macOS and Windows

    class _Absent:
        """Stands in for ``triton`` and ``tl`` in annotations and decorators."""

        constexpr = Any

        def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
            return function

    triton = _Absent()
    tl = _Absent()


def interpreted() -> bool:
    """Whether Triton kernels were decorated for the interpreter (``TRITON_INTERPRET=1``)."""
    return HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"


def numba_jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` with its on-disk cache, kept in the temporary folder where HOME is read-only."""
    import numba

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no writable place for the cache beside the file or under HOME
            config: Any = numba.config  # its attributes are set at run time
            config.CACHE_DIR = os.path.join(tempfile.gettempdir(), "circuitcore-numba")
            return numba.njit(cache=True, nogil=True, **options)(function)

    return decorate


def on_disk(function: Any) -> bool:
    """Whether numba's cache holds machine code of what `numba_jit` decorated, for some arguments.

    Without it the first call compiles, which takes seconds and memory.
    """
    code = function.py_func.__code__
    index = f"*.{function.py_func.__name__}-{code.co_firstlineno}.*.nbi"
    return any(Path(function.stats.cache_path).glob(index))
