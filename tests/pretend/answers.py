"""Triton launches on a pretended device: checked, recorded, and answered by the reference.

A launcher runs as it is: tiles, grid, strides and padding are those of a GPU.  The launch itself
is taken down and does nothing; when the operation (``torch.ops.circuitcore.*``) that made it is
done, its result is overwritten by the operation's own torch path on the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pretend import levels
from pretend.counts import Launch, site
from pretend.ghosts import is_ghost
from pretend.operations import checked, execute
from pretend.state import CAPTURING, current_device, state
from pretend.tensors import Pretended, elements, tensors_in

MOST_PROGRAMS = (2**31 - 1, 65535, 65535)


class _Inside(threading.local):
    launched: list[str] | None = None  # by the operation that runs now


INSIDE = _Inside()


def run_custom(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation of the product's own: its body runs on the wrappers, then its answer is put in.

    Its mutable arguments and its results are what is overwritten.
    """
    schema = func._schema
    name = schema.name.partition("::")[2]
    checked(name, tensors_in([*args, *kwargs.values()], []))
    body = torch._library.custom_ops.OPDEFS[schema.name]._init_fn
    values = list(args) + [
        kwargs.get(a.name, a.default_value) for a in schema.arguments[len(args) :]
    ]
    outer, INSIDE.launched = INSIDE.launched, []
    try:
        found = body(*values)
        launched = INSIDE.launched
    finally:
        INSIDE.launched = outer
    if launched:
        written = [v for v, a in zip(values, schema.arguments, strict=True)
                   if a.alias_info is not None and a.alias_info.is_write]  # fmt: skip
        into = elements(tensors_in([found, *written], []))
        plain = elements(values)
        if not any(map(is_ghost, into)):
            known = name in levels.ANSWERS or not any(map(is_ghost, tensors_in(plain, [])))
            reference = _answer(name, schema, body) if known else _made_up(into)
            execute(_Answer(reference), [into, plain], {})
    return found


class _Answer:
    """Puts what a reference gives into the tensors that the operation gave; also at a replay."""

    mutates = True

    def __init__(self, reference: Callable[..., Any]) -> None:
        self.reference = reference

    def __call__(self, into: list[torch.Tensor], values: list[Any]) -> None:
        if CAPTURING.get() is not None:
            return  # nothing runs: what the reference would read is poisoned
        found = tensors_in(self.reference(*values), [])
        assert len(found) in (len(into), 0), "the reference must give what the operation gives"
        for tensor, value in zip(into, found, strict=False):
            assert tensor.shape == value.shape and tensor.dtype == value.dtype
            tensor.copy_(value)


def _made_up(into: list[torch.Tensor]) -> Callable[..., Any]:
    """What an operation on ghosts gives where its result is none: numbers between 0 and 1."""
    return lambda *_: [torch.rand(tensor.shape).to(tensor.dtype) for tensor in into]


def _answer(name: str, schema: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """The reference of an operation, on CPU tensors: its torch path, or one of `levels`."""
    if name in levels.ANSWERS:
        return levels.ANSWERS[name]
    names = [argument.name for argument in schema.arguments]
    if "impl" not in names:
        raise NotImplementedError(f"no answer to {name}: give one in tests/pretend/answers.py")
    at = names.index("impl")
    return lambda *values: body(*values[:at], "torch", *values[at + 1 :])


def launch(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
    """`JITFunction.run`: check the launch as the driver would, and take it down."""
    names = kernel.arg_names
    given = dict(zip(names, args, strict=False)) | kwargs
    arguments = {n: given[n] for n in names if n in given}
    constants = {p.name for p in kernel.params if p.is_constexpr}
    sizes = tuple(grid(given) if callable(grid) else grid)
    called = kernel.__name__
    _refuse(called, sizes, arguments)
    tensors = {n: v for n, v in arguments.items() if isinstance(v, torch.Tensor)}
    numbers = {n: v for n, v in arguments.items() if n not in constants and n not in tensors}
    taken = Launch(
        called, sizes,
        {n: (str(t.dtype).removeprefix("torch."), t.data_ptr() % 16 == 0)
         for n, t in tensors.items()},
        {n: int(v) for n, v in numbers.items() if isinstance(v, int)},
        tuple(n for n, v in numbers.items() if isinstance(v, float)),
        {n: v for n, v in given.items() if n in constants or n not in arguments or v is None},
        {n: t.untyped_storage().nbytes() // t.element_size() - t.storage_offset()
         for n, t in elements_of(tensors).items()},
        site(),
    )  # fmt: skip
    counts = state().counts
    counts.launches.append(taken)
    (counts.captured if CAPTURING.get() is not None else counts.triton)[called, taken.site] += 1
    if INSIDE.launched is None:
        raise NotImplementedError(f"{called} was launched outside an operation: nothing answers")
    INSIDE.launched.append(called)


def elements_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: elements(tensor) for name, tensor in tensors.items()}


def _refuse(called: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Raise RuntimeError for a launch that a device would refuse, or run on the wrong memory."""
    if any(size > most for size, most in zip(grid, MOST_PROGRAMS, strict=False)):
        raise RuntimeError(f"Triton Error [CUDA]: invalid argument: {called} with grid {grid}")
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        if not isinstance(value, Pretended):
            raise ValueError(
                f"Pointer argument cannot be accessed from Triton (cpu tensor?): {called} {name}"
            )
        if value.index != current_device():
            raise RuntimeError(
                f"{called}: {name} is on cuda:{value.index}, launched on cuda:{current_device()}"
            )
