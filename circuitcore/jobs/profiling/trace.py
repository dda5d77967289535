"""What a profiler saw of a run, whichever it was: ranges, marks and what ran on a GPU.

Seconds count from any one moment.  A thread is a number that tells it from the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OPERATION = "operation"  # the kind of what torch ran inside the ranges of `kernels.spans`


@dataclass(frozen=True, slots=True)
class Range:
    """A range of one thread: a kind of `kernels.spans`, or an operation of torch."""

    start: float
    end: float
    thread: int
    kind: str
    name: str
    payload: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """How much the range that is open on this thread just then does: ``what`` and how many."""

    at: float
    thread: int
    what: str
    value: int


@dataclass(frozen=True, slots=True)
class Activity:
    """A kernel or copy on a GPU, and the moment and thread that asked for it.

    ``node``: of the captured graph whose replay it was part of.
    """

    start: float
    end: float
    name: str
    thread: int | None = None
    asked: float = 0.0
    node: int | None = None


@dataclass
class Trace:
    """All that was seen.  ``captured``: of a graph's node, the thread and moment of its capture."""

    ranges: list[Range] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)
    captured: dict[int, tuple[int, float]] = field(default_factory=dict)
