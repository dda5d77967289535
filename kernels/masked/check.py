"""What the masked layers share: the check of a call, and of an input for NaN and infinities."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_masked(
    x: torch.Tensor,
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: Sequence[int],
    bias: torch.Tensor | None,
    *,
    axes: str,
    inputs: str,
    groups: int = 1,
) -> None:
    """Raise ValueError unless weight is ``[axes]``, x ``[inputs]`` or ``[T, inputs]``, level uint8
    of the weight's shape, bias ``[O]`` or None, all of one dtype, and ``ts`` are 0..255.

    The second of ``axes`` and of ``inputs`` are the input channels, of a group and of all groups.
    """
    rank = axes.count(",") + 1
    if weight.dim() != rank or level.shape != weight.shape or level.dtype != torch.uint8:
        raise ValueError(
            f"weight {tuple(weight.shape)} and level {tuple(level.shape)} {level.dtype}: "
            f"expected [{axes}] and uint8 of the same shape"
        )
    if x.dim() not in (rank, rank + 1) or x.shape[1 - rank] != weight.shape[1] * groups:
        raise ValueError(
            f"x {tuple(x.shape)}: expected [{inputs}] or [T, {inputs}] with "
            f"I = {weight.shape[1] * groups}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide {weight.shape[0]} filters")
    if x.dim() == rank + 1 and x.shape[0] != len(ts):
        raise ValueError(f"x holds {x.shape[0]} levels, ts {len(ts)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)}: expected [{weight.shape[0]}]")
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}: expected one dtype")
    if not ts or min(ts) < 0 or max(ts) > 255:
        raise ValueError(f"levels {list(ts)}: expected one or more of 0..255")


def has_nan(out: torch.Tensor) -> bool:
    """Whether NaN is in ``out``, in one pass; blocks until a GPU has computed it.

    What a pruned weight may leak is 0 times an infinity or a NaN, which is NaN and stays one
    through sums, biases, ReLU and later layers.  Infinities of both signs say yes as well.
    """
    return bool(torch.isnan(out.sum(dtype=torch.float32)))


def all_finite(x: torch.Tensor) -> bool:
    """Whether all of x is finite, in one pass; a sum that overflows says no, which costs speed."""
    return bool(torch.isfinite(x.sum(dtype=torch.float32)))
