"""Sums, products and quotients: of values, with numbers, with tensors; sums over axes; softmax."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.network.graph import Step
from circuitcore.network.layers.kinds import Layer
from circuitcore.network.layers.reading import Reader, Reading, Refused, Shape, Value
from circuitcore.network.layers.shapes import Size, number

HOW: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


def _both(how: str) -> Layer:
    function = HOW[how]
    return Layer(lambda s, v, f: function(v[0], v[1]), "pairs", absorbs=how == "mul")


def _with(step: Step, x: Tensor, other: Any) -> Tensor:
    how, swapped = HOW[step.settings["how"]], step.settings["swapped"]
    return how(other, x) if swapped else how(x, other)


def _with_number(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    by = step.settings["number"]
    return _with(step, values[0], number(by, values) if isinstance(by, Size) else by)


def _with_channels(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    x = values[0]
    return _with(step, x, fixed[0].view(-1, *(1 for _ in x.shape[2:])))


def _reduced(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    how, axes, keep = (step.settings[key] for key in ("how", "axes", "keepdim"))
    x = values[0]
    if how in ("var", "std"):
        unbiased = step.settings["unbiased"]
        function = torch.var if how == "var" else torch.std
        return function(x, axes, unbiased=unbiased, keepdim=keep)
    if how == "norm":
        return torch.linalg.vector_norm(x, step.settings["order"], axes, keepdim=keep)
    functions: dict[str, Any] = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax,
                                 "amin": torch.amin}  # fmt: skip
    found: Tensor = functions[how](x, axes, keepdim=keep)
    return found


def _softmax(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    return F.softmax(values[0], step.settings["axis"])


LAYERS = {
    "add": _both("add"),
    "subtract": _both("sub"),
    "multiply": _both("mul"),
    "divide": _both("div"),
    "raise": _both("pow"),
    "maximum": _both("maximum"),
    "minimum": _both("minimum"),
    "with_number": Layer(_with_number, "own"),
    "with_channels": Layer(_with_channels, "own"),
    "with_tensor": Layer(lambda s, v, f: _with(s, v[0], f[0]), "whole"),
    "mean": Layer(lambda s, v, f: v[0].mean((2, 3), keepdim=s.settings.get("keepdim", False)),
                  "own"),
    "reduced": Layer(_reduced, "own"),
    "reduced_channels": Layer(_reduced, "whole"),
    "softmax": Layer(_softmax, "own"),
    "softmax_channels": Layer(_softmax, "whole"),
}  # fmt: skip
_OPS = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "pow": "raise",
        "maximum": "maximum", "minimum": "minimum"}  # fmt: skip


def binary(r: Reading, how: str, left: Any, right: Any) -> Value:
    """``left how right``: values, numbers, sizes or tensors, one of them a value at least."""
    if isinstance(left, Value) and isinstance(right, Value):
        return _values(r, how, left, right)
    value, other, swapped = (left, right, False) if isinstance(left, Value) else (right, left, True)
    if isinstance(other, Tensor) and other.numel() == 1 and other.dim() <= len(value.shape):
        other = other.item()
    if isinstance(other, int | float | Size):
        settings = {"how": how, "number": other, "swapped": swapped}
        return r.like("with_number", value, settings)
    if not isinstance(other, Tensor):
        raise Refused(f"it is given {type(other).__name__}")
    settings = {"how": how, "swapped": swapped}
    rank = len(value.seen)
    if other.dim() > rank:
        raise Refused("it is given a tensor of more axes than the value has")
    shape = (1,) * (rank - other.dim()) + tuple(other.shape)
    axis = rank - 1 if value.view == "last" else 1
    alone = all(size == 1 for k, size in enumerate(shape) if k != axis)
    if value.view in ("plain", "last") and alone and shape[axis] == value.shape[1]:
        return r.like("with_channels", value, settings, [other.reshape(-1)])
    if shape[0] != 1:
        raise Refused("it is given a tensor for every image of a batch")
    x = r.plain(value)
    return r.emit("with_tensor", [x], broadcast(x.shape, shape)[1:], settings, [other])


def _values(r: Reading, how: str, left: Value, right: Value) -> Value:
    if (left.view, left.groups) != (right.view, right.groups):
        left, right = r.plain(left), r.plain(right)
    if len(left.shape) != len(right.shape):
        raise Refused("its values have different numbers of axes")
    shape = broadcast(left.shape, right.shape)
    found = r.emit(_OPS[how], [left, right], shape[1:])
    return replace(found, view=left.view, groups=left.groups)


def broadcast(left: Sequence[int | Size], right: Sequence[int | Size]) -> Shape:
    """The shape of what two shapes of equal length give together."""
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


def _read(how: str, reverse: bool = False) -> Reader:
    def read(r: Reading, input: Any, other: Any, *, alpha: Any = 1, out: Any = None,
             rounding_mode: Any = None) -> Value:  # fmt: skip
        if out is not None or rounding_mode is not None:
            raise Refused("it is called with arguments that are not known")
        if alpha != 1:
            other = binary(r, "mul", other, alpha) if isinstance(other, Value) else other * alpha
        return binary(r, how, other, input) if reverse else binary(r, how, input, other)

    return read


def _negated(r: Reading, input: Value) -> Value:
    return binary(r, "mul", input, -1)


def _addcmul(r: Reading, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Value:
    product = binary(r, "mul", tensor1, tensor2)
    if value != 1:
        product = binary(r, "mul", product, value)
    return binary(r, "add", input, product)


def _lerp(r: Reading, input: Any, end: Any, weight: Any) -> Value:
    step = binary(r, "mul", binary(r, "sub", end, input), weight)
    return binary(r, "add", input, step)


def axes_of(value: Value, dims: Any) -> tuple[int, ...]:
    """Axes of what is stored, of dimensions as the code sees them."""
    rank = len(value.seen)
    given = range(rank) if dims is None else (dims,) if isinstance(dims, int) else dims
    seen = tuple(sorted(int(d) % rank for d in given))
    if 0 in seen:
        raise Refused("it combines the images of a batch")
    if value.view == "last":
        return tuple(sorted(1 if d == rank - 1 else d + 1 for d in seen))
    return seen


def _reduce(how: str, **more: Any) -> Reader:
    def read(r: Reading, input: Value, dim: Any = None, keepdim: bool = False, **given: Any) -> Any:
        value = input if input.view in ("plain", "last") else r.plain(input)
        if not set(given) <= set(more):
            raise Refused("it is called with arguments that are not known")
        axes = axes_of(value, dim)
        if value.view == "last" and not keepdim and axes != (2, 3):
            value = r.plain(value)
            axes = axes_of(value, dim)
        shape = [
            1 if k in axes else s for k, s in enumerate(value.shape) if keepdim or k not in axes
        ]
        if how == "mean" and axes == (2, 3) and len(value.shape) == 4:
            found = r.emit("mean", [value], shape[1:], {"keepdim": True} if keepdim else {})
        else:
            op = "reduced_channels" if 1 in axes else "reduced"
            settings = {"how": how, "axes": axes, "keepdim": keepdim, **more, **given}
            if len(shape) < 2:
                raise Refused("it leaves no channels")
            found = r.emit(op, [value], shape[1:], settings)
        return replace(found, view=value.view) if keepdim else found

    return read


def _norm(r: Reading, input: Value, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduce("norm", order=2)(r, input, dim, keepdim, order=2 if p == "fro" else p)


def _largest(how: str) -> Reader:
    def read(r: Reading, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None or isinstance(dim, Value):
            return binary(r, {"amax": "maximum", "amin": "minimum"}[how], input, dim)
        return (_reduce(how)(r, input, dim, keepdim), None)  # and indices, which nothing may read

    return read


def _variance(how: str) -> Reader:
    def read(r: Reading, input: Value, dim: Any = None, unbiased: Any = True,
             keepdim: bool = False, correction: Any = None) -> Any:  # fmt: skip
        if correction is not None:
            unbiased = bool(correction)
        return _reduce(how, unbiased=True)(r, input, dim, keepdim, unbiased=unbiased)

    return read


def _softmax_call(r: Reading, input: Value, dim: Any = None, dtype: Any = None,
                  _stacklevel: int = 3) -> Value:  # fmt: skip
    value = input if input.view in ("plain", "last") else r.plain(input)
    (axis,) = axes_of(value, int(dim))
    return r.like("softmax_channels" if axis == 1 else "softmax", value, {"axis": axis})


def _softmax_module(r: Reading, module: Any, input: Value) -> Value:
    return _softmax_call(r, input, module.dim)


MODULES: dict[Any, Reader] = {torch.nn.Softmax: _softmax_module}
METHODS: dict[str, Reader] = {
    "add": _read("add"), "sub": _read("sub"), "mul": _read("mul"), "div": _read("div"),
    "multiply": _read("mul"), "divide": _read("div"), "true_divide": _read("div"),
    "subtract": _read("sub"), "pow": _read("pow"),
    "maximum": _read("maximum"), "minimum": _read("minimum"), "neg": _negated,
    "addcmul": _addcmul, "lerp": _lerp,
    "mean": _reduce("mean"), "sum": _reduce("sum"), "amax": _reduce("amax"),
    "amin": _reduce("amin"), "max": _largest("amax"), "min": _largest("amin"), "norm": _norm,
    "var": _variance("var"), "std": _variance("std"), "softmax": _softmax_call,
}  # fmt: skip
METHODS |= {f"{name}_": METHODS[name] for name in
            ("add", "sub", "mul", "div", "pow", "neg", "addcmul", "lerp")}  # fmt: skip
_INFIX = {"add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "pow": "pow"}
FUNCTIONS: dict[Any, Reader] = {
    **{getattr(torch, name): read for name, read in METHODS.items() if hasattr(torch, name)},
    **{getattr(operator, sign): _read(how) for sign, how in _INFIX.items()},
    **{getattr(operator, f"i{sign}"): _read(how) for sign, how in _INFIX.items()},
    operator.neg: _negated,
    F.softmax: _softmax_call,
}
