"""A layer's weights at several levels of a sweep, pruned ones 0: what a library's product takes.

    out[k, i] = W[i] if level[i] > t_k else 0

One launch reads weights and level bytes once for all levels, and needs no mask in between.  A
pruned weight is 0 even where it is NaN or infinite.
"""

from __future__ import annotations

import torch

from circuitcore.kernels.dispatch import choose
from circuitcore.kernels.masked_weights.reference import masked_weights_reference


def masked_weights(
    weight: torch.Tensor,
    level: torch.Tensor,
    ts: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    impl: str = "auto",
) -> torch.Tensor:
    """``out`` [T, *weight.shape], new if None, of the weights' dtype.

    ``level`` uint8 or bool like ``weight``, ``ts`` int32 [T], all on one device and contiguous.
    Raises ValueError where they are not.
    """
    given = [weight, level, ts] if out is None else [weight, level, ts, out]
    if level.shape != weight.shape or not all(each.is_contiguous() for each in given):
        raise ValueError("weights and level bytes of one shape, contiguous")
    if out is None:
        out = weight.new_empty(len(ts), *weight.shape)
    _masked_weights(
        weight, level.view(torch.uint8), ts, out, choose(impl, weight, operation="masked_weights")
    )
    return out


@torch.library.custom_op("circuitcore::masked_weights", mutates_args=("out",))
def _masked_weights(
    weight: torch.Tensor, level: torch.Tensor, ts: torch.Tensor, out: torch.Tensor, impl: str
) -> None:
    if impl == "triton":
        from circuitcore.kernels.masked_weights.gpu import launch_weights

        return launch_weights(weight, level, ts, out)
    out.copy_(masked_weights_reference(weight, level, ts).view(out.shape))


@_masked_weights.register_fake
def _(
    weight: torch.Tensor, level: torch.Tensor, ts: torch.Tensor, out: torch.Tensor, impl: str
) -> None:
    return None
