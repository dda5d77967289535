"""What a device found, copied to the host: at once, or several results behind one wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

Called = TypeVar("Called", bound=Callable[..., Any])

_awaited: ContextVar[list[torch.device] | None] = ContextVar("awaited", default=None)


def arrived(found: Tensor) -> Tensor:
    """A copy on the host; within `waiting_once` its numbers are there only at the end of that."""
    awaited = _awaited.get()
    if awaited is None or found.device.type == "cpu":
        return found.to("cpu", copy=True)
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    host.copy_(found, non_blocking=True)
    awaited.append(found.device)
    return host


def awaits() -> bool:
    """Whether what `arrived` gives now is not there yet."""
    return _awaited.get() is not None


@contextmanager
def waiting_once() -> Iterator[None]:
    """The host waits for the device at the end, once, for all that `arrived` within it."""
    devices: list[torch.device] = []
    token = _awaited.set(devices)
    try:
        yield
    finally:
        _awaited.reset(token)
    for device in set(devices):
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def waiting_each_time() -> Iterator[None]:
    """Within it `arrived` waits, inside `waiting_once` too: its numbers are read at once."""
    token = _awaited.set(None)
    try:
        yield
    finally:
        _awaited.reset(token)


def unwaited(look: Called) -> Called:
    """Mark a function that gives what `arrived` gave it as it is, and may run in `waiting_once`."""
    look.unwaited = True  # type: ignore[attr-defined]
    return look


def may_wait_once(look: Callable[..., Any]) -> bool:
    """Whether a function was marked so."""
    return getattr(look, "unwaited", False)
