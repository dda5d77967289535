"""Parts of a value, and values side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuitcore.network.graph import Step
from circuitcore.network.layers.arithmetic import axes_of
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.moving import unsqueezed
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value
from circuitcore.network.layers.shapes import Size, number


def _channels(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    s = step.settings
    return values[0][:, s["start"] : s["stop"] : s["step"]]


def _indexed(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    index = (number(part, values) if isinstance(part, Size) else part
             for part in step.settings["index"])  # fmt: skip
    return values[0][(slice(None), *index)]


LAYERS = {
    "cat": Layer(lambda s, v, f: torch.cat(list(v), 1), "cat"),
    "joined": Layer(lambda s, v, f: torch.cat(list(v), s.settings["axis"]), "pairs"),
    "channels": Layer(_channels, "pick"),
    "indexed": Layer(_indexed, "whole"),
    "indexed_places": Layer(_indexed, "own"),
}


def _getitem(r: Reading, input: Any, index: Any) -> Any:
    if not isinstance(input, Value):
        return input[index]
    parts = list(index) if isinstance(index, tuple) else [index]
    rank = len(input.seen)
    if any(p is not None and not isinstance(p, int | Size | slice | type(...)) for p in parts):
        raise Refused("it is indexed by a tensor")
    if any(isinstance(e, Size) for p in parts if isinstance(p, slice)
           for e in (p.start, p.stop, p.step)):  # fmt: skip
        raise Refused("where it is cut depends on the image")
    given = sum(p is not None and p is not ... for p in parts)
    place = parts.index(...) if ... in parts else len(parts)
    parts[place : place + 1] = [slice(None)] * (rank - given)
    if parts[0] != slice(None):
        raise Refused("it picks images of a batch")
    if all(p == slice(None) for p in parts):
        return input
    alone = all(p == slice(None) for p in parts[2:])
    if input.view == "split" and isinstance(parts[1], int) and alone:
        each = input.channels // input.groups
        k = parts[1] % input.groups
        return part_of(r, input, k * each, (k + 1) * each)
    return _indexed_parts(r, r.plain(input), parts[1:])


def _indexed_parts(r: Reading, x: Value, parts: list[Any]) -> Value:
    if isinstance(parts[0], slice) and isinstance(x.shape[1], int):
        start, stop, step = parts[0].indices(x.shape[1])
        if step != 1 or (start, stop) != (0, x.shape[1]):
            x = part_of(r, x, start, stop, step)
        parts = [slice(None), *parts[1:]]
        if all(p == slice(None) for p in parts):
            return x
    op = "indexed_places" if parts[0] == slice(None) else "indexed"
    shape: list[int | Size | None] = []
    axis = 1
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        size = x.shape[axis]
        axis += 1
        if part == slice(None):
            shape.append(size)
        elif isinstance(part, slice):
            shape.append(len(range(*part.indices(size))) if isinstance(size, int) else None)
    if not shape:
        raise Refused("it leaves no channels")
    return r.emit(op, [x], shape, {"index": tuple(parts)})


def part_of(r: Reading, x: Value, start: int, stop: int, step: int = 1) -> Value:
    """Some of a value's channels."""
    settings = {"start": start, "stop": stop, "step": step}
    count = len(range(start, stop, step))
    return r.emit("channels", [Value(x.name, x.shape)], [count, *x.shape[2:]], settings)


def _parts(r: Reading, input: Value, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
    dim %= len(input.seen)
    found, start = [], 0
    last = input.view == "last" and dim == len(input.seen) - 1
    for size in sizes:
        if last:
            part = part_of(r, input, start, start + size)
            found.append(replace(part, view="last"))
        else:
            index = [slice(None)] * len(input.seen)
            index[dim] = slice(start, start + size)
            found.append(_getitem(r, input, tuple(index)))
        start += size
    return tuple(found)


def _split(r: Reading, input: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    size = input.seen[dim]
    if not isinstance(size, int):
        raise Refused("how many parts there are depends on the image")
    each = split_size_or_sections
    if isinstance(each, int):
        each = [min(each, size - start) for start in range(0, size, each)]
    return _parts(r, input, list(each), dim)


def _chunk(r: Reading, input: Value, chunks: int, dim: int = 0) -> Any:
    size = input.seen[dim]
    if not isinstance(size, int):
        raise Refused("how large the parts are depends on the image")
    return _split(r, input, -(-size // chunks), dim)


def _unbind(r: Reading, input: Value, dim: int = 0) -> Any:
    size = input.seen[dim]
    if not isinstance(size, int):
        raise Refused("how many parts there are depends on the image")
    index: list[Any] = [slice(None)] * len(input.seen)
    found = []
    for k in range(size):
        index[dim] = k
        found.append(_getitem(r, input, tuple(index)))
    return tuple(found)


def _cat(r: Reading, tensors: Any, dim: int = 0) -> Value:
    values = list(tensors)
    if not all(isinstance(value, Value) for value in values):
        raise Refused("it is given tensors that are not computed from the images")
    rank = len(values[0].seen)
    if len(values) == 1:
        return values[0]
    if all(v.view == "last" for v in values) and dim % rank == rank - 1:
        inside = _cat(r, [Value(v.name, v.shape) for v in values], 1)
        return replace(inside, view="last")
    values = [r.plain(value) for value in values]
    (axis,) = axes_of(values[0], dim)
    shape = list(values[0].shape)
    total: int | Size = 0
    for value in values:
        total = value.shape[axis] + total
    shape[axis] = total
    if axis == 1:
        return r.emit("cat", values, shape[1:])
    sizes: list[int | Size | None] = list(shape)
    if isinstance(total, Size):
        sizes[axis] = None
    return r.emit("joined", values, sizes[1:], {"axis": axis})


def _stack(r: Reading, tensors: Any, dim: int = 0) -> Value:
    values = list(tensors)
    same = all(v.view == "plain" and v.shape[1] == values[0].shape[1] for v in values)
    if same and len(values[0].shape) == 4 and dim % 5 == 1:
        return replace(_cat(r, values, 1), view="split", groups=len(values))
    return _cat(r, [unsqueezed(r, value, dim) for value in values], dim)


MODULES: dict[Any, Reader] = {}
METHODS: dict[str, Reader] = {"split": _split, "chunk": _chunk, "unbind": _unbind}
FUNCTIONS: dict[Any, Reader] = {
    **{getattr(torch, name): read for name, read in METHODS.items()},
    torch.cat: _cat,
    torch.concat: _cat,
    torch.stack: _stack,
    "getitem": _getitem,
}
