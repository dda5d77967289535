"""CUDA graphs: a capture records operations and their tensors, a replay runs them in place again.

Nothing runs while it is captured: what operations give is poisoned, what they write to is left as
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pretend.state import CAPTURING, state
from pretend.tensors import tensors_in


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.nodes: list[tuple[Callable[..., Any], Sequence[Any], dict[str, Any], list[Any]]] = []
        self.launches = 0
        self.ready = False

    def record(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Take a node down; what it would give, poisoned, in the tensors that replays write to."""
        before = tensors_in([*args, *kwargs.values()], [])
        kept = [(t, t.clone()) for t in before] if _mutates(func) else []
        found = func(*args, **kwargs)
        for tensor, own in kept:
            tensor.copy_(own)
        storages = {t.untyped_storage()._cdata for t in before}
        new = [t for t in tensors_in(found, []) if t.untyped_storage()._cdata not in storages]
        for tensor in new:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        if new or kept:
            self.nodes.append((func, args, kwargs, new))
        return found

    def replay(self) -> None:
        """Run it on what its static inputs hold now."""
        if not self.ready:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        counts = state().counts
        counts.replays += 1
        counts.replayed += self.launches
        for func, args, kwargs, new in self.nodes:
            found = [t for t in tensors_in(func(*args, **kwargs), []) if new]
            written = found[-len(new) :] if new else []
            for into, value in zip(new, written, strict=True):
                into.copy_(value)

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def pool(self) -> tuple[int, int]:
        return (0, id(self))


def _mutates(func: Callable[..., Any]) -> bool:
    schema = getattr(func, "_schema", None)
    return bool(schema.is_mutable) if schema is not None else getattr(func, "mutates", True)


@contextmanager
def capture(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    """`torch.cuda.graph`."""
    if CAPTURING.get() is not None:
        raise RuntimeError("a capture inside a capture")
    counts = state().counts
    before = counts.captured.total()
    token = CAPTURING.set(graph)
    try:
        yield
        graph.ready = True
        graph.launches = counts.captured.total() - before
        counts.captures += 1
    finally:
        CAPTURING.reset(token)
