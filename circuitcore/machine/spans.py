"""What a profiler is shown of a run: NVTX ranges in the domain ``circuitcore``.

They nest run > category > stage > level > kernel, each kind an NVTX category with a colour of its
own, so that Nsight Systems can filter by it (``circuitcore profile``).  Where no profiler listens
the domain is disabled and a range costs well under a microsecond.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import nvtx

Kind = Literal["run", "category", "stage", "level", "kernel"]
COLOURS = {
    "run": "purple",
    "category": "blue",
    "stage": "cyan",
    "level": "green",
    "kernel": "orange",
}
_domain: Any = nvtx.get_domain("circuitcore")
_FREE = nullcontext()


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
