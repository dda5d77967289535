"""A call that an operation's Triton kernels answer, and the plain torch they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Tensors = torch.Tensor | Sequence[torch.Tensor]
DRAWN = 1_048_573  # numbers that are drawn, then repeated; a prime, so that no two rows are alike


@dataclass(frozen=True)
class Trial:
    """``arguments`` makes them on a device; ``kernel`` and ``reference`` take them by name.

    ``what``: sizes, in words.  ``dtype``: float32 (IEEE), tf32, bfloat16, float16, or uint8.
    ``real``: as large as a sweep of a real network makes it.  ``additions``: in a row, in the
    longest float32 sum of the kernel, where that of the reference is a tree.
    """

    what: str
    dtype: str
    arguments: Callable[[torch.device], dict[str, Any]]
    kernel: Callable[..., Tensors]
    reference: Callable[..., Tensors]
    real: bool = False
    additions: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of its tensors."""
        return dtype_of(self.dtype)


def dtype_of(name: str) -> torch.dtype:
    """Torch's name for a dtype; ``tf32`` is how float32 is multiplied."""
    found: torch.dtype = getattr(torch, name.replace("tf32", "float32"))
    return found


def normal(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers, the same every time; a million are drawn, so that large tensors are quick."""
    count = torch.Size(shape).numel()
    few = torch.randn(min(count, DRAWN), generator=torch.Generator().manual_seed(len(shape)))
    return few.to(device).repeat(-(-count // len(few)))[:count].view(*shape).to(dtype)


def integers(shape: Sequence[int], most: int, device: torch.device) -> torch.Tensor:
    """uint8 numbers from 0 to ``most``, alike."""
    count = torch.Size(shape).numel()
    drawn = min(count, DRAWN)
    few = torch.randint(0, most + 1, (drawn,), generator=torch.Generator().manual_seed(most))
    return few.to(torch.uint8).to(device).repeat(-(-count // drawn))[:count].view(*shape)


@contextmanager
def float32_products(dtype: str) -> Iterator[None]:
    """Products of float32 on a GPU as TF32 where ``dtype`` says so, else in full."""
    torch_has: Any = torch.backends  # its types do not name these settings
    own = torch_has.cuda.matmul, torch_has.cudnn.conv
    before = [each.fp32_precision for each in own]
    try:
        for each in own:
            each.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        yield
    finally:
        for each, value in zip(own, before, strict=True):
            each.fp32_precision = value
