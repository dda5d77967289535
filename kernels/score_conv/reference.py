"""`score_conv` in plain torch: the specification of its fast versions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from circuitcore.kernels.score_conv.library import Geometry, unit_sum
from circuitcore.kernels.score_linear.factors import MAGNITUDES

GRANULARITIES = ("weight", "kernel", "filter")


# parameters are the operation's: the specification can be read and called alone
def score_conv_reference(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    magnitude: str = "position",
    granularity: str = "weight",
    spatial: str = "sum",
) -> torch.Tensor:
    """The definition: every contribution at every position of every image is written out."""
    geometry = _geometry(stride, padding, dilation, groups)
    _check(weight, x, g, geometry, magnitude, granularity, spatial)
    dtype = _result_dtype(weight, x, g)
    weight, x, g = weight.to(dtype), x.to(dtype), g.to(dtype)
    filters, channels, rows, columns = weight.shape
    totals = []
    for o in range(filters):
        first = o // (filters // groups) * channels
        total = torch.zeros((), dtype=dtype, device=weight.device)
        for x_n, g_n in zip(x, g, strict=True):
            patches = F.unfold(
                x_n[None, first : first + channels],
                (rows, columns),
                dilation=geometry.dilation,
                padding=geometry.padding,
                stride=geometry.stride,
            ).view(channels, rows, columns, -1)
            a = weight[o][..., None] * patches  # [I/groups, R, S, positions]
            a = unit_sum(a[None], granularity)[0]
            contribution = a * g_n[o].reshape(-1)
            if magnitude == "position":
                contribution = contribution.abs()
            image = contribution.sum(-1)
            total = total + (image.abs() if magnitude == "image" else image)
        totals.append(total / x.shape[0])
    scores = torch.stack(totals)
    scores = scores.abs() if magnitude == "set" else scores
    return scores / (g.shape[2] * g.shape[3]) if spatial == "mean" else scores


def _geometry(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    return Geometry(
        (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups
    )


def _result_dtype(*tensors: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check(
    weight: torch.Tensor,
    x: torch.Tensor,
    g: torch.Tensor,
    geometry: Geometry,
    magnitude: str,
    granularity: str,
    spatial: str,
) -> None:
    if magnitude not in MAGNITUDES:
        raise ValueError(f"magnitude={magnitude!r}: one of {', '.join(MAGNITUDES)}")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r}: one of {', '.join(GRANULARITIES)}")
    if spatial not in ("sum", "mean"):
        raise ValueError(f"spatial={spatial!r}: sum or mean")
    shapes = f"weight {tuple(weight.shape)}, x {tuple(x.shape)}, g {tuple(g.shape)}"
    if weight.ndim != 4 or x.ndim != 4 or g.ndim != 4:
        raise ValueError(f"{shapes}: [O, I/groups, R, S], [N, I, H, W] and [N, O, OH, OW] expected")
    size = [
        (x.shape[2 + d] + 2 * geometry.padding[d] - geometry.dilation[d] * (weight.shape[2 + d] - 1)
         - 1) // geometry.stride[d] + 1
        for d in (0, 1)
    ]  # fmt: skip
    expected = (x.shape[0], weight.shape[0], *size)
    channels = weight.shape[1] * geometry.groups
    if (
        tuple(g.shape) != expected
        or x.shape[1] != channels
        or weight.shape[0] % geometry.groups
        or x.shape[0] == 0
    ):
        raise ValueError(f"{shapes}: g must be {expected} and x have {channels} channels")
