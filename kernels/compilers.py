"""The two just-in-time compilers, so that an operation's file reads the same where one is missing.

Triton exists on Linux only; an operation's file imports ``triton`` and ``tl`` from here and
decorates its kernels as usual.  Where Triton is absent the decorators return the plain function:
it is never launched, because `dispatch.choose` never picks it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from circuitcore.kernels.cache import private_folder
from circuitcore.progress import compiling

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON:
    import triton
    import triton.language as tl
else:  # pragma: no cover - macOS and Windows

    class _Absent:
        """Stands in for ``triton`` and ``tl`` in annotations and decorators."""

        constexpr = Any

        def jit(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
            return (lambda plain: plain) if function is None else function

    triton = _Absent()
    tl = _Absent()


def interpreted() -> bool:
    """Whether Triton kernels were decorated for the interpreter (``TRITON_INTERPRET=1``)."""
    return HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def missing() -> str:
    """What Triton lacks to launch its first kernel here, and how to install it; "" where nothing.

    Triton compiles the C code that hands a kernel to the driver, on NVIDIA and AMD alike.  Looked
    for where Triton looks; the interpreter needs none of it.
    """
    if not HAS_TRITON:
        return "Triton is not installed (it exists for Linux only)"
    if interpreted():
        return ""
    named = os.environ.get("CC")
    if not (
        shutil.which(named.split()[0]) if named else shutil.which("gcc") or shutil.which("clang")
    ):
        what = f"the C compiler CC={named} is not there" if named else "there is no C compiler"
        return f"{what}: apt-get install gcc, conda install gcc, or set CC"
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # Debian's, as Triton takes it
    header = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    if not header.is_file():
        return f"{header} is not there: apt-get install python3-dev (dnf: python3-devel)"
    return ""


@functools.cache
def warn_of(what: str) -> None:
    """Say once a process that a GPU runs without Triton, and why."""
    warnings.warn(f"A GPU runs plain torch instead of Triton, slower: {what}", stacklevel=2)


@functools.cache
def numba_folder() -> Path:
    """Where compiled functions are kept if not beside their source or under HOME."""
    return private_folder("circuitcore-numba")


def numba_jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` with its on-disk cache, kept in the temporary folder where HOME is read-only."""
    import numba

    _told_by_numba()

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no writable place for the cache beside the file or under HOME
            config: Any = numba.config  # its attributes are set at run time
            config.CACHE_DIR = str(numba_folder())
            return numba.njit(cache=True, nogil=True, **options)(function)

    return decorate


@functools.cache
def _told_by_numba() -> None:
    """Pass on what numba tells of its compiling, so that half a minute of it is no silence."""
    from numba.core import event

    class Passed(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            function = getattr(event.data["dispatcher"], "py_func", None)
            if function is not None and function.__module__.startswith("circuitcore."):
                compiling(function.__name__)  # not what numba itself is made of

        def on_end(self, event: Any) -> None:
            """Nothing to tell."""

    event.register("numba:compile", Passed())


def use_torch_threads() -> None:
    """Let numba run as many threads as torch does.

    Where both share OpenMP, numba leaves torch as many as there are cores when it starts its own;
    another number rounds otherwise, and what is computed twice would not be the same.
    """
    import numba

    config: Any = numba.config  # its attributes are set at run time
    count = torch.get_num_threads()
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def on_disk(function: Any) -> bool:
    """Whether numba's cache holds machine code of what `numba_jit` decorated, for some arguments.

    Without it the first call compiles, which takes seconds and memory.
    """
    code = function.py_func.__code__
    index = f"*.{function.py_func.__name__}-{code.co_firstlineno}.*.nbi"
    return any(Path(function.stats.cache_path).glob(index))
