"""Pretend that this machine has CUDA devices, for one test.

    with pretended(devices=2) as cuda:
        run = circuitcore.sweep(..., device="cuda:1")
        assert cuda.counts.triton.total() < 100
        with no_sync():
            ...

Tensors on ``cuda:0`` and ``cuda:1`` hold their numbers on the CPU, refuse to meet others, and every
launch, wait of the host and byte that crosses is counted (`counts.Counts`).  Everything of torch
and Triton that is replaced is put back at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from pretend.answers import launch
from pretend.cuda import replacements
from pretend.operations import Factories
from pretend.state import State, begin, end, no_sync
from pretend.tensors import Memory

__all__ = ["in_children", "no_sync", "pretended"]


@contextmanager
def pretended(devices: int = 2, memory: int = 80 * 10**9, **about: Any) -> Iterator[State]:
    """So many devices of ``memory`` bytes each; ``about``: `State`'s other fields."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton exists on Linux only")
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU here: tests/gpu runs on it")
    torch._C._ensureCUDADeviceGuardSet()  # C++ code that switches devices then does nothing
    made = State(devices, Memory(memory), **about)
    begin(made)
    factories = Factories(made)
    try:
        with ExitStack() as stack:
            for owner, name, new in replacements():
                stack.enter_context(mock.patch.object(owner, name, new))
            stack.enter_context(mock.patch.object(jit.JITFunction, "run", launch))
            yield made
    finally:
        factories.close()
        end()


def in_children(monkeypatch: pytest.MonkeyPatch, counts: Path, devices: int = 2) -> None:
    """Python processes that this one starts pretend too, and leave their totals in ``counts``."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here / "child"), str(here.parent)]))
    monkeypatch.setenv("PRETEND_CUDA", str(devices))
    monkeypatch.setenv("PRETEND_COUNTS", str(counts))
