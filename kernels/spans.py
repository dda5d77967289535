"""What a profiler is shown of a run: NVTX ranges in the domain ``circuitcore``.

They nest run > category > stage > level > layer > kernel, each kind an NVTX category with a colour
of its own, so that Nsight Systems can filter by it; inside them marks say how much is computed
(``circuitcore profile`` reads both).  Where no profiler listens the domain is disabled and a range
costs well under a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import nvtx

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["run", "category", "stage", "level", "layer", "kernel"]
COLOURS = {
    "run": "purple",
    "category": "blue",
    "stage": "cyan",
    "level": "green",
    "layer": "yellow",
    "kernel": "orange",
}
WORK = "work"  # the kind of marks
MULTIPLY_ADDS, BYTES = "multiply-adds", "bytes"
CAPTURE, CAPTURED = "capture", "captured pass"  # of a graph; what its replays are called
_domain: Any = nvtx.get_domain("circuitcore")


class _Nothing:
    """No range.  A built-in method that takes anything and gives nothing costs little."""

    __slots__ = ()
    __enter__ = __exit__ = "".format


_FREE: Any = _Nothing()


class _Range:
    """One range of the calling thread, open inside a with block."""

    __slots__ = ("_attributes",)

    def __init__(self, attributes: Any) -> None:
        self._attributes = attributes

    def __enter__(self) -> None:
        _domain.push_range(self._attributes)

    def __exit__(self, *error: object) -> None:
        _domain.pop_range()


def span(kind: Kind, name: str, payload: int | None = None) -> AbstractContextManager[None]:
    """A range of the profiler's timeline: ``with span("level", "fc", t): ...``.

    ``name`` is registered once and kept, so take few different ones (a category, a stage, a layer)
    and put the number that tells them apart in ``payload``.
    """
    attributes = _domain.get_event_attributes(name, COLOURS[kind], kind, payload)
    return _FREE if attributes is None else _Range(attributes)  # None: nobody listens


def work(multiply_adds: int, *moved: Tensor | int | None) -> None:
    """Tell the profiler what the innermost open range does: multiply-adds as executed, and bytes.

    ``moved``: what is read or written once, tensors or numbers of bytes.  Tensors that have shapes
    alone do nothing.
    """
    told = _domain.get_event_attributes(MULTIPLY_ADDS, "white", WORK, multiply_adds)
    if told is None:
        return
    size = 0
    for each in moved:
        if isinstance(each, int):
            size += each
        elif each is not None:
            if each.is_meta:
                return
            size += each.numel() * each.element_size()
    _domain.mark(told)
    _domain.mark(_domain.get_event_attributes(BYTES, "white", WORK, size))


@contextmanager
def shown_to(listener: Any) -> Iterator[None]:
    """Ranges and marks go to ``listener`` meanwhile, which has the methods of an NVTX domain."""
    global _domain
    before, _domain = _domain, listener
    try:
        yield
    finally:
        _domain = before
