"""Tensors that say they are on ``cuda:N`` and hold their numbers on the CPU.

Nothing below `__torch_dispatch__` ever sees a device: the wrapper's own key makes every operation
arrive in Python, in whatever thread, and `operations` runs it on what the wrappers hold.

A tensor that takes part in autograd calls itself ``meta`` to the C++ code, and ``cuda:N`` to
Python: the engine would look for the streams of a real device.  Its gradients are turned back.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

NUMPY = "can't convert cuda:{} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."  # noqa: E501


class Memory:
    """Bytes that live tensors of each device take; ``peak`` since it was last reset."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.limit: dict[int, int] = {}  # lower ones, by device
        self.now: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()


class Block:
    """A storage on a device: its bytes count while a tensor or a view of it is alive."""

    def __init__(self, memory: Memory, index: int, size: int) -> None:
        if memory.now[index] + size > memory.limit.get(index, memory.total):
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU {index} is pretended."
            )
        self.memory, self.index, self.size = memory, index, size
        memory.now[index] += size
        memory.peak[index] = max(memory.peak[index], memory.now[index])

    def __del__(self) -> None:
        if hasattr(self, "size"):
            self.memory.now[self.index] -= self.size


class Pretended(torch.Tensor):
    """``elem``: the numbers, on the CPU; ``index``: the device; ``block``: the storage."""

    elem: torch.Tensor
    index: int
    block: Block
    in_graph: bool  # takes part in autograd

    @staticmethod
    def __new__(
        cls: type[Pretended], elem: torch.Tensor, index: int, block: Block, in_graph: bool = False
    ) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device("meta") if in_graph else torch.device("cuda", index),
        )
        made.elem, made.index, made.block, made.in_graph = elem, index, block, in_graph
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        from pretend.operations import handle

        return handle(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.elem!r} as on cuda:{self.index}"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(NUMPY.format(self.index))

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(NUMPY.format(self.index))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        ghost = self.elem.device.type == "meta"  # allocations are aligned
        return self.elem.storage_offset() * self.elem.itemsize if ghost else self.elem.data_ptr()

    def record_stream(self, stream: Any) -> None:
        if stream.device.index != self.index:
            raise RuntimeError(f"a stream of {stream.device} for a tensor on {self.device}")

    def is_pinned(self, *_: Any) -> bool:
        return False

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors")


def elements(found: Any) -> Any:
    """What is in there with the CPU's tensors in the wrappers' places (lists and tuples too)."""
    if isinstance(found, Pretended):
        return found.elem
    if isinstance(found, list | tuple):
        return type(found)(elements(each) for each in found)
    return found


def tensors_in(found: Any, into: list[torch.Tensor]) -> list[torch.Tensor]:
    """All tensors of (nested) arguments, in order."""
    if isinstance(found, torch.Tensor):
        into.append(found)
    elif isinstance(found, list | tuple):
        for each in found:
            tensors_in(each, into)
    return into
