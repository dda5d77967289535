"""From what a profiler saw to where the time went: by stage, level, layer and kernel.

A moment of a thread belongs to the innermost range open on it, so that the parts of a thread add up
to the whole.  What runs on a GPU belongs to the ranges that were open where it was asked for, or,
of a replayed graph, to the layer that was open where it was captured.  A layer's work is credited
to the longest of its kernels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from circuitcore.jobs.profiling.trace import OPERATION, Activity, Mark, Range, Trace
from circuitcore.kernels.spans import CAPTURE, CAPTURED, MULTIPLY_ADDS

STRUCTURE = ("run", "category", "stage")
A_CATEGORY = "a category"  # what all of them are called
HOST = "(host, no operation)"
ROUNDED = 2e-9  # seconds by which profilers round what touches apart, or into one another
Path = tuple[str, ...]


@dataclass
class Sum:
    """How often, for how long, and how much: seconds inclusive, ``own`` without ranges inside."""

    calls: int = 0
    seconds: float = 0.0
    own: float = 0.0
    multiply_adds: int = 0
    bytes: int = 0


@dataclass
class Layer:
    """One run of a layer: its work, and the seconds of each kernel in it."""

    name: str
    stages: Path
    payload: int | None
    multiply_adds: int = 0
    bytes: int = 0
    kernels: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class Frame:
    """A range that is open, and what it lies in."""

    range: Range
    stages: Path
    layer: Layer | None
    kernel: str | None
    left: float  # seconds that no range inside takes
    level: tuple[str, int | None] | None


Sums = defaultdict[tuple[str, ...], Sum]


def _sums() -> Sums:
    return defaultdict(Sum)


@dataclass
class Attributed:
    """Seconds of a trace.

    ``wall``: of the run, on the thread ``main``; ``uncovered``: of it in no range inside the run
    and its categories, whose paths are ``outer``.  ``stages``: of the main thread by path, run >
    category > stage; ``beside``: of the other threads by stage; ``levels`` by (stage, level),
    ``layers`` by (stage, layer), ``kernels`` by name.  Of a trace with a GPU, ``device`` by path
    are seconds of what ran on it, ``busy`` those in which anything did, and layers and kernels are
    timed there.
    """

    wall: float = 0.0
    uncovered: float = 0.0
    main: int = 0
    on_device: bool = False
    busy: float = 0.0
    outer: set[Path] = field(default_factory=set)
    stages: Sums = field(default_factory=_sums)
    beside: Sums = field(default_factory=_sums)
    device: Sums = field(default_factory=_sums)
    levels: Sums = field(default_factory=_sums)
    layers: Sums = field(default_factory=_sums)
    kernels: Sums = field(default_factory=_sums)


def attribute(trace: Trace) -> Attributed:
    """Where the seconds of a trace went."""
    found = Attributed(on_device=bool(trace.activities))
    start, end, found.main = _window(trace)
    found.wall = end - start
    threads = defaultdict(list)
    marks: dict[int, list[Mark]] = defaultdict(list)
    for each in trace.ranges:
        threads[each.thread].append(each)
    for mark in trace.marks:
        marks[mark.thread].append(mark)
    lines = {}
    for thread, ranges in threads.items():
        walk = _Thread(found, thread, start, end)
        walk.run(ranges, marks[thread])
        lines[thread] = walk
    covered = sum(each.own for path, each in found.stages.items() if path not in found.outer)
    found.uncovered = max(0.0, found.wall - covered)
    if trace.activities:
        _Device(found, trace, lines).run()
    return found


def _window(trace: Trace) -> tuple[float, float, int]:
    """Start and end of the run, and its thread; all that was seen where no run was."""
    runs = [each for each in trace.ranges if each.kind == "run"]
    if runs:
        run = max(runs, key=lambda each: each.end - each.start)
        return run.start, run.end, run.thread
    if not trace.ranges:
        return 0.0, 0.0, 0
    longest: dict[int, float] = defaultdict(float)
    for each in trace.ranges:
        longest[each.thread] = max(longest[each.thread], each.end - each.start)
    main = max(longest, key=lambda thread: longest[thread])
    return min(r.start for r in trace.ranges), max(r.end for r in trace.ranges), main


class _Thread:
    """One thread's ranges, from the first to the last."""

    def __init__(self, found: Attributed, thread: int, start: float, end: float) -> None:
        self.found, self.main = found, thread == found.main
        self.window = start, end
        self.open: list[Frame] = []
        self.times: list[float] = []  # when a range of ours opened or closed
        self.frames: list[Frame | None] = []  # and which one was innermost then

    def run(self, ranges: list[Range], marks: list[Mark]) -> None:
        """Attribute them all, in order: the longer first where two begin together."""
        events: list[Range | Mark] = [*ranges, *marks]
        for each in sorted(events, key=_order):
            at = each.at if isinstance(each, Mark) else each.start
            while self.open and self._over(each, at):
                self._close()
            if isinstance(each, Mark):
                self._mark(each)
            else:
                self._open(each)
        while self.open:
            self._close()

    def _over(self, each: Range | Mark, at: float) -> bool:
        """Whether the innermost range has ended; a mark at the very end of one is inside it."""
        end = self.open[-1].range.end
        return end < at - ROUNDED if isinstance(each, Mark) else end <= at + ROUNDED

    def _open(self, new: Range) -> None:
        over = self.open[-1] if self.open else None
        stages, layer = (over.stages, over.layer) if over else ((), None)
        kernel, level = (over.kernel, over.level) if over else (None, None)
        if over:
            new = new if new.end <= over.range.end else _clipped(new, over.range.end)
            over.left -= new.end - new.start
        if new.kind in STRUCTURE:
            stages = (*stages, A_CATEGORY if new.kind == "category" else new.name)
        elif new.kind == "level":
            level = new.name, new.payload
        elif new.kind == "layer" and layer is None:
            layer = Layer(new.name, stages, new.payload)
        elif new.kind == "kernel":
            kernel = f"circuitcore::{new.name}"
        if new.kind == OPERATION:
            kernel = new.name
        frame = Frame(new, stages, layer, kernel, new.end - new.start, level)
        self.open.append(frame)
        if new.kind != OPERATION:
            self._at(new.start, frame)

    def _at(self, time: float, frame: Frame | None) -> None:
        self.times.append(time)
        self.frames.append(frame)

    def _mark(self, mark: Mark) -> None:
        layer = self.open[-1].layer if self.open else None
        if layer is not None:
            name = "multiply_adds" if mark.what == MULTIPLY_ADDS else "bytes"
            setattr(layer, name, getattr(layer, name) + mark.value)

    def _close(self) -> None:
        frame = self.open.pop()
        over = self.open[-1] if self.open else None
        if frame.range.kind != OPERATION:
            self._at(frame.range.end, over)
        seconds = frame.range.end - frame.range.start
        if frame.range.kind in STRUCTURE:
            self._sum(frame, seconds)
        elif frame.range.kind == "level" and not self.found.on_device:
            _add(self.found.levels[_level(frame.stages, frame.range.payload)], seconds)
        if frame.stages and frame.range.kind not in STRUCTURE:
            place = self.found.stages if self.main else self.found.beside
            place[frame.stages if self.main else frame.stages[-1:]].own += frame.left
        self._kernel(frame)
        if frame.layer is not None and (over is None or over.layer is None):
            self._layer(frame.layer, seconds)

    def _sum(self, frame: Frame, seconds: float) -> None:
        """A run, category or stage is over."""
        if frame.range.kind != "stage":
            self.found.outer.add(frame.stages)
        if self.main:
            _add(self.found.stages[frame.stages], seconds, frame.left)
        elif frame.range.kind == "stage":
            _add(self.found.beside[frame.stages[-1:]], seconds, frame.left)

    def _kernel(self, frame: Frame) -> None:
        """Seconds of the host that an operation, or a kernel of the CPU's, takes by itself."""
        if self.found.on_device or not frame.stages or frame.left <= 0:
            return
        name = frame.kernel or HOST
        itself = name == HOST or frame.range.kind in (OPERATION, "kernel")
        _add(self.found.kernels[name,], frame.left, calls=int(itself))
        if frame.layer is not None:
            frame.layer.kernels[name] += frame.left

    def _layer(self, layer: Layer, seconds: float) -> None:
        """A layer is over; on a GPU its seconds are known later."""
        if self.found.on_device or not layer.stages or CAPTURE in layer.stages:
            return
        total = self.found.layers[layer.stages[-1], layer.name]
        _add(total, seconds)
        if layer.payload is not None and layer.name != CAPTURED:
            _add(self.found.levels[_level(layer.stages, layer.payload)], seconds)
        _credit(self.found, layer, total)

    def at(self, time: float) -> Frame | None:
        """The innermost range of ours that is open at a moment."""
        place = bisect_right(self.times, time) - 1
        return self.frames[place] if place >= 0 else None


def _order(each: Range | Mark) -> tuple[float, int, float]:
    if isinstance(each, Mark):  # what a range does is told at its end
        return each.at, 0, 0.0
    return each.start, 1, -each.end


def _clipped(each: Range, end: float) -> Range:
    return Range(each.start, end, each.thread, each.kind, each.name, each.payload)


def _add(total: Sum, seconds: float, own: float = 0.0, calls: int = 1) -> None:
    total.calls += calls
    total.seconds += seconds
    total.own += own


def _level(stages: Path, level: int | None) -> tuple[str, str]:
    return stages[-1] if stages else "", str(level)


def _credit(found: Attributed, layer: Layer, total: Sum) -> None:
    """A layer's work, to it and to the longest of its kernels."""
    total.multiply_adds += layer.multiply_adds
    total.bytes += layer.bytes
    if kernels := [name for name in layer.kernels if name != HOST]:
        longest = max(kernels, key=lambda name: layer.kernels[name])
        found.kernels[longest,].multiply_adds += layer.multiply_adds
        found.kernels[longest,].bytes += layer.bytes


class _Device:
    """What ran on a GPU; seconds of a layer are those of its kernels."""

    def __init__(self, found: Attributed, trace: Trace, lines: dict[int, _Thread]) -> None:
        self.found, self.trace, self.lines = found, trace, lines
        self.runs: dict[int, tuple[Layer, float]] = {}
        self.replays: dict[tuple[int, int], Layer] = {}

    def run(self) -> None:
        """Attribute all of it."""
        for each in self.trace.activities:
            frame = self._frame(each.thread, each.asked)
            path, seconds = frame.stages if frame else (), each.end - each.start
            _add(self.found.device[path], seconds)
            _add(self.found.kernels[each.name,], seconds)
            if frame is None:
                continue
            if frame.level is not None:
                _add(self.found.levels[_level(path, frame.level[1])], seconds)
            if (layer := self._layer(each, frame)) is not None:
                layer.kernels[each.name] += seconds
                self.runs[id(layer)] = layer, self.runs.get(id(layer), (layer, 0.0))[1] + seconds
        self.found.busy = sum(end - start for start, end in _union(self.trace.activities))
        for layer, seconds in self.runs.values():
            total = self.found.layers[layer.stages[-1] if layer.stages else "", layer.name]
            _add(total, seconds)
            _credit(self.found, layer, total)

    def _frame(self, thread: int | None, at: float) -> Frame | None:
        line = None if thread is None else self.lines.get(thread)
        return None if line is None else line.at(at)

    def _layer(self, each: Activity, frame: Frame) -> Layer | None:
        """The run of a layer that a kernel belongs to.

        That of a replay does what it did when it was captured; nothing is left for the replay then.
        """
        taken = None if each.node is None else self.trace.captured.get(each.node)
        made = self._frame(*taken) if taken else None
        asked = frame.layer
        if made is None or made.layer is None or asked is None:
            return asked
        asked.multiply_adds = asked.bytes = 0
        own = made.layer
        again = Layer(own.name, frame.stages, None, own.multiply_adds, own.bytes)
        return self.replays.setdefault((id(asked), id(own)), again)


def _union(activities: Iterable[Activity]) -> Iterator[tuple[float, float]]:
    """The intervals in which anything ran."""
    start = end = None
    for each in sorted(activities, key=lambda a: a.start):
        if end is None or start is None or each.start > end:
            if start is not None and end is not None:
                yield start, end
            start, end = each.start, each.end
        else:
            end = max(end, each.end)
    if start is not None and end is not None:
        yield start, end
