"""What the pretended devices of a test are: counts, memory, and each thread's current device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pretend.counts import Counts, site
from pretend.tensors import Memory

if TYPE_CHECKING:
    from pretend.graphs import Graph

CAPTURING: ContextVar[Graph | None] = ContextVar("capturing", default=None)


@dataclass
class State:
    """``devices`` of them; ``strict``: a wait of the host fails.

    ``host``: shapes are all there is of large tensors (`ghosts`), and this gives what arrives of
    them on the host: host(site, tensor on meta) -> CPU tensor.
    """

    devices: int
    memory: Memory
    counts: Counts = field(default_factory=Counts)
    pinned: dict[int, Any] = field(default_factory=dict)
    strict: bool = False
    touched: set[int] = field(default_factory=set)  # devices that this process has a context on
    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    name: str = "Pretended H100"
    host: Callable[[str, torch.Tensor], torch.Tensor] | None = None


class _Thread(threading.local):
    device = 0
    streams: dict[int, Any] = {}


THREAD = _Thread()
_now: list[State] = []


def state() -> State:
    """The devices that are pretended now.  RuntimeError where none is."""
    if not _now:
        raise RuntimeError("the pretended device of this tensor is gone with its test")
    return _now[-1]


def begin(made: State) -> None:
    _now.append(made)


def end() -> None:
    _now.pop()
    THREAD.device = 0


def current_device() -> int:
    """This thread's device."""
    return THREAD.device


def synchronised(why: str) -> None:
    """The host waits for a device: counted, an error inside a capture or where none is allowed."""
    now = state()
    if CAPTURING.get() is not None:
        raise RuntimeError(
            f"CUDA error: operation not permitted when stream is capturing ({why}, {site()})"
        )
    now.counts.syncs[why, site()] += 1
    if now.strict:
        raise RuntimeError(f"called a synchronizing CUDA operation ({why}, {site()})")


@contextmanager
def no_sync() -> Iterator[None]:
    """Any wait of the host inside the block is an error, as under ``set_sync_debug_mode(2)``."""
    now = state()
    before, now.strict = now.strict, True
    try:
        yield
    finally:
        now.strict = before
