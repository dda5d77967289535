"""What moves numbers and computes none: shapes, orders, parts, joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuitcore.network.graph import Step
from circuitcore.network.layers.arithmetic import axes_of
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader, Reading, Refused, Value
from circuitcore.network.layers.shapes import IMAGES, Size, number, product, quotient


def _arranged(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    """As the module's code sees it: `reading.Value.view`."""
    x, view = values[0], step.settings["view"]
    if view == "last":
        return x.movedim(1, -1)
    x = x.unflatten(1, (step.settings["groups"], -1))
    return x if view == "split" else x.transpose(1, 2)


def _shuffled(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    return values[0].unflatten(1, (step.settings["groups"], -1)).transpose(1, 2).flatten(1, 2)


def _reshaped(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    shape = [number(each, values) for each in step.settings["shape"]]
    return values[0].reshape(values[0].shape[0], *shape)


def _reshaped_places(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    shape = [number(each, values) for each in step.settings["shape"]]
    return values[0].reshape(*values[0].shape[:2], *shape)


def _expanded(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    return values[0].expand(-1, *(number(each, values) for each in step.settings["shape"]))


def _expanded_places(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    return values[0].expand(-1, -1, *(number(each, values) for each in step.settings["shape"]))


LAYERS = {
    "flatten": Layer(lambda s, v, f: torch.flatten(v[0], 1), "flatten"),
    "arranged": Layer(_arranged, "whole"),
    "shuffled": Layer(_shuffled, "pick"),
    "reshaped": Layer(_reshaped, "whole"),
    "reshaped_places": Layer(_reshaped_places, "own"),
    "permuted": Layer(lambda s, v, f: v[0].permute(s.settings["axes"]), "whole"),
    "permuted_places": Layer(lambda s, v, f: v[0].permute(s.settings["axes"]), "own"),
    "expanded": Layer(_expanded, "whole"),
    "expanded_places": Layer(_expanded_places, "own"),
    "repeated": Layer(lambda s, v, f: v[0].repeat(1, *s.settings["times"]), "whole"),
    "pixel_shuffle": Layer(lambda s, v, f: F.pixel_shuffle(v[0], **s.settings), "whole"),
    "pixel_unshuffle": Layer(lambda s, v, f: F.pixel_unshuffle(v[0], **s.settings), "whole"),
    "flipped": Layer(lambda s, v, f: v[0].flip(s.settings["axes"]), "own"),
    "rolled": Layer(lambda s, v, f: v[0].roll(s.settings["shifts"], s.settings["axes"]), "own"),
}


def _reshape(r: Reading, input: Value, *shape: Any) -> Value:
    dims = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    return _to_shape(r, input, dims)


def _to_shape(r: Reading, value: Value, dims: list[Any]) -> Value:
    whole = product(value.seen)
    if -1 in dims:
        place = dims.index(-1)
        dims[place] = 1
        dims[place] = quotient(whole, product(dims))
    if dims[0] != IMAGES:
        raise Refused(
            "it mixes the images of a batch, or their number is fixed; flatten(1) keeps them apart"
        )
    new = tuple(dims)
    if new == value.seen:
        return value
    if len(new) == 2 and (len(value.shape) == 2 or value.view == "plain"):
        return _flattened(r, value)
    if value.view == "swapped" and new[1:] == value.shape[1:]:
        return r.emit("shuffled", [value], value.shape[1:], {"groups": value.groups})
    if value.view == "split" and new[1:] == value.shape[1:]:
        return replace(value, view="plain", groups=1)
    if value.view == "plain" and len(value.shape) == 4 and new[3:] == value.shape[2:]:
        groups = new[1]
        if len(new) == 5 and isinstance(groups, int) and product(new[1:3]) == value.shape[1]:
            return replace(value, view="split", groups=groups)
    x = r.plain(value)
    own = len(new) > 1 and new[1] == x.shape[1]
    if own:
        return r.emit("reshaped_places", [x], new[1:], {"shape": new[2:]})
    return r.emit("reshaped", [x], new[1:], {"shape": new[1:]})


def _flattened(r: Reading, value: Value) -> Value:
    if len(value.shape) == 2:
        return value
    return r.emit("flatten", [value], [product(value.shape[1:])])


def _flatten(r: Reading, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    seen = input.seen
    start, end = start_dim % len(seen), end_dim % len(seen)
    if start == 0:
        raise Refused("it mixes the images of a batch")
    dims = [*seen[:start], product(seen[start : end + 1]), *seen[end + 1 :]]
    return _to_shape(r, input, dims)


def _flatten_module(r: Reading, module: nn.Flatten, input: Value) -> Value:
    return _flatten(r, input, module.start_dim, module.end_dim)


def _unflatten(r: Reading, input: Value, dim: int, sizes: Any) -> Value:
    seen = input.seen
    dim %= len(seen)
    new = list(sizes)
    if -1 in new:
        place = new.index(-1)
        new[place] = 1
        new[place] = quotient(seen[dim], product(new))
    return _to_shape(r, input, [*seen[:dim], *new, *seen[dim + 1 :]])


def _permute(r: Reading, input: Value, *dims: Any) -> Value:
    given = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    rank = len(input.seen)
    axes = tuple(int(d) % rank for d in given)
    if axes == tuple(range(rank)):
        return input
    behind = (0, *range(2, rank), 1)
    if input.view == "plain" and rank == 4 and axes == behind:
        return replace(input, view="last")
    if input.view == "last" and axes == (0, rank - 1, *range(1, rank - 1)):
        return replace(input, view="plain")
    if input.view in ("split", "swapped") and axes == (0, 2, 1, *range(3, rank)):
        groups = input.groups
        other = {"split": "swapped", "swapped": "split"}[input.view]
        return replace(input, view=other, groups=groups)
    x = r.plain(input)
    if axes[0]:
        raise Refused("it moves the axis of images")
    op = "permuted_places" if axes[1] == 1 else "permuted"
    return r.emit(op, [x], [x.shape[k] for k in axes[1:]], {"axes": axes})


def _transpose(r: Reading, input: Value, dim0: int, dim1: int) -> Value:
    rank = len(input.seen)
    axes = list(range(rank))
    axes[dim0 % rank], axes[dim1 % rank] = axes[dim1 % rank], axes[dim0 % rank]
    return _permute(r, input, *axes)


def unsqueezed(r: Reading, input: Value, dim: int) -> Value:
    """A value with an axis of one more, as the code sees it."""
    seen = list(input.seen)
    seen.insert(dim % (len(seen) + 1), 1)
    return _to_shape(r, input, seen)


def _squeeze(r: Reading, input: Value, dim: Any = None) -> Value:
    seen = input.seen
    if dim is None:
        raise Refused("which axes it drops depends on the images")
    dims = {int(d) % len(seen) for d in ((dim,) if isinstance(dim, int) else dim)}
    if any(isinstance(seen[d], Size) for d in dims):
        raise Refused("whether it drops an axis depends on the image")
    return _to_shape(r, input, [s for k, s in enumerate(seen) if k not in dims or s != 1])


def _expand(r: Reading, input: Value, *shape: Any) -> Value:
    dims = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    x = r.plain(input)
    if len(dims) != len(x.shape):
        raise Refused("it adds axes")
    dims = [s if d == -1 else d for d, s in zip(dims, x.shape, strict=True)]
    if dims[0] != IMAGES:
        raise Refused("it repeats the images of a batch")
    if tuple(dims) == x.shape:
        return x
    if dims[1] == x.shape[1]:
        return r.emit("expanded_places", [x], dims[1:], {"shape": tuple(dims[2:])})
    return r.emit("expanded", [x], dims[1:], {"shape": tuple(dims[1:])})


def _expand_as(r: Reading, input: Value, other: Value) -> Value:
    return _expand(r, input, *other.seen)


def _repeat(r: Reading, input: Value, *repeats: Any) -> Value:
    times = repeats[0] if len(repeats) == 1 and isinstance(repeats[0], tuple | list) else repeats
    x = r.plain(input)
    if len(times) != len(x.shape) or times[0] != 1 or any(isinstance(t, Size) for t in times):
        raise Refused("it repeats the images of a batch, or a number of times that depends on one")
    shape = [s * t for s, t in zip(x.shape[1:], times[1:], strict=True)]
    return r.emit("repeated", [x], shape, {"times": tuple(times[1:])})


def _pixel(op: str, name: str) -> Reader:
    def read(r: Reading, input: Value, factor: int) -> Value:
        x = r.plain(input)
        square = factor * factor
        channels = x.channels // square if op == "pixel_shuffle" else x.channels * square
        return r.emit(op, [x], [channels, None, None], {name: factor})

    return read


def _pixel_module(op: str, name: str) -> Reader:
    return lambda r, module, input: _pixel(op, name)(r, input, getattr(module, name))


def _flip(r: Reading, input: Value, *dims: Any) -> Value:
    given = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    x = r.plain(input)
    axes = axes_of(x, given)
    if 1 in axes:
        raise Refused("it turns round the channels")
    return r.emit("flipped", [x], x.shape[1:], {"axes": axes})


def _roll(r: Reading, input: Value, shifts: Any, dims: Any) -> Value:
    axes = axes_of(input, dims) if isinstance(dims, int) else None
    if input.view != "plain" or axes is None or 1 in axes:
        raise Refused("it moves channels round")
    return r.emit("rolled", [input], input.shape[1:], {"shifts": shifts, "axes": axes[0]})


def _size(r: Reading, input: Any, dim: int | None = None) -> Any:
    seen = input.seen
    return seen if dim is None else seen[dim]


def _attribute(r: Reading, input: Any, name: str) -> Any:
    if not isinstance(input, Value):
        return getattr(input, name)
    if name == "shape":
        return input.seen
    if name == "ndim":
        return len(input.seen)
    if name in ("dtype", "device"):
        return None
    if name == "mT" or name == "T":
        raise Refused("it is transposed: attention is not supported")
    raise Refused(f"its {name} is asked for")


def _nothing(r: Reading, *args: Any, **kwargs: Any) -> None:
    return None


MODULES: dict[Any, Reader] = {
    nn.Flatten: _flatten_module,
    nn.Unflatten: lambda r, m, input: _unflatten(r, input, m.dim, m.unflattened_size),
    nn.PixelShuffle: _pixel_module("pixel_shuffle", "upscale_factor"),
    nn.PixelUnshuffle: _pixel_module("pixel_unshuffle", "downscale_factor"),
    nn.ChannelShuffle: lambda r, m, input: _shuffle(r, input, m.groups),
}


def _shuffle(r: Reading, input: Value, groups: int) -> Value:
    x = r.plain(input)
    return r.emit("shuffled", [x], x.shape[1:], {"groups": groups})


METHODS: dict[str, Reader] = {
    "view": _reshape, "reshape": _reshape, "flatten": _flatten, "unflatten": _unflatten,
    "permute": _permute, "transpose": _transpose, "swapaxes": _transpose,
    "unsqueeze": unsqueezed, "squeeze": _squeeze, 
    "expand": _expand, "expand_as": _expand_as, "repeat": _repeat,
    "size": _size, "dim": lambda r, input: len(input.seen), "flip": _flip, "roll": _roll,
    "view_as": lambda r, input, other: _to_shape(r, input, list(other.seen)),
    "reshape_as": lambda r, input, other: _to_shape(r, input, list(other.seen)),
}  # fmt: skip
_NAMES = ("reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "unsqueeze",
          "squeeze", "flip", "roll")  # fmt: skip
FUNCTIONS: dict[Any, Reader] = {
    **{getattr(torch, name): METHODS[name] for name in _NAMES},
    F.pixel_shuffle: _pixel("pixel_shuffle", "upscale_factor"),
    F.pixel_unshuffle: _pixel("pixel_unshuffle", "downscale_factor"),
    F.channel_shuffle: _shuffle,
    "getattr": _attribute,
    "_assert": _nothing,
    "is_contiguous": _nothing,
}
