"""On a GPU categories overlap: the next one is scored, and the last one committed, meanwhile.

A category leaves a device idle while the host decides between looks and while a file is written;
scoring and ranking the next one, on a stream and a thread of their own, fill that.  On a CPU the
cores are busy anyway, so everything happens in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from circuitcore.engine.prepare import Prepared
from circuitcore.extraction.stage import Scored, ranked
from circuitcore.inputs.categories import Category

Work = Callable[[], Scored | None]
"""Gives a category's scores, or None where they are made when they are needed."""
Take = Callable[[bool], Category | None]
"""take(wait): the next category to do, None where there is none, or none without waiting."""


def scored_ahead(prepared: Prepared, take: Take) -> Iterator[tuple[Category, Work]]:
    """The categories that are taken, each with what gives its scores.

    On a GPU the next one's are begun before one is yielded, if one can be taken without waiting.
    What scoring raises is raised by the call, so that one category's fault is its own.
    """
    device = prepared.runner.machine.device
    if device.type != "cuda":
        while (category := take(True)) is not None:
            yield category, lambda: None
        return
    side = torch.cuda.Stream(device)

    def begun(unit: int) -> Future[Scored]:
        # what the last category's tensors lay in may be given out again: its work is done by then
        side.wait_stream(torch.cuda.current_stream(device))
        return pool.submit(on_side, unit)

    def on_side(unit: int) -> Scored:
        with torch.cuda.device(device), torch.cuda.stream(side):
            return ranked(prepared, unit)

    def waited(future: Future[Scored]) -> Scored:
        found, current = future.result(), torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in _made(found):
            tensor.record_stream(current)  # its memory is not given away before this is done
        return found

    with ThreadPoolExecutor(1, "score") as pool:
        category = take(True)
        while category is not None:
            mine = begun(category.index)
            while category is not None:
                mine.exception()  # its tensors are there before the next one's are asked for
                following = take(False)
                ahead = None if following is None else begun(following.index)
                yield category, lambda mine=mine: waited(mine)  # type: ignore[misc]
                category = following
                if ahead is not None:
                    mine = ahead
            category = take(True)


def _made(work: Scored) -> Iterator[Tensor]:
    """What scoring and ranking a category leave on the device."""
    for each in work.found.values():
        yield from (each.x, each.g)
    for assigned in work.assigned.values():
        yield from assigned.levels.values()


@contextmanager
def committed_behind(device: torch.device) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Calls one thing after another: on a GPU in a thread, at most one behind; else at once.

    What a call raised is raised by the next one, or at the end.
    """
    if device.type != "cuda":
        yield lambda call: call()
        return
    last: list[Future[None]] = []
    with ThreadPoolExecutor(1, "commit") as pool:

        def submit(call: Callable[[], None]) -> None:
            if last:
                last.pop().result()
            last.append(pool.submit(call))

        yield submit
        if last:
            last.pop().result()
