"""Level selection on a GPU: what launches the kernels of `gpu_kernels`.

The three passes are torch custom operators of their own (``circuitcore::levels_range``,
``levels_histogram`` and ``levels_bytes``); `gpu_select` decides between them, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from circuitcore.kernels.compilers import triton
from circuitcore.kernels.launch import launch, recorded
from circuitcore.kernels.levels.gpu_kernels import (
    levels_byte_kernel,
    levels_histogram_kernel,
    levels_range_kernel,
)
from circuitcore.kernels.levels.layer import LayerScores, normalisation
from circuitcore.kernels.levels.trie import DIGITS, KEY_DIGITS
from circuitcore.kernels.score_linear.factors import FORM_CODES
from circuitcore.kernels.score_linear.gpu import NO_FUSION, LinearTile

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

FACTORED = LinearTile(4, 256)  # 8 rows spill a register in the second histogram of sm_90
GIVEN = LinearTile(1, 2048)  # scores that are given are one long row


@dataclass(frozen=True)
class Prepared:
    """A layer's launch: float32 tensors; ``layout`` = R, C, N, form, rows, columns, warps."""

    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    layout: list[int]
    norm: torch.Tensor
    shape: torch.Size


def prepared(layer: LayerScores, tile: LinearTile | None = None) -> Prepared:
    weight, left, right, layout = _factors(layer, tile)
    return Prepared(weight, left, right, layout, normalisation(layer), weight.shape)


def _factors(
    layer: LayerScores, tile: LinearTile | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Weights, factors (given scores are the right one), and the layout of `Prepared`."""
    weight = layer.weight.detach().float().contiguous()
    if layer.values is not None:
        tile = tile or GIVEN
        left = right = layer.values.detach().float().contiguous()
        sizes = [1, weight.numel(), 1, 0]
    else:
        assert layer.left is not None and layer.right is not None
        tile = tile or FACTORED
        left, right = (t.detach().float().contiguous() for t in (layer.left, layer.right))
        sizes = [left.shape[1], right.shape[1], left.shape[0], FORM_CODES[layer.form]]
    return weight, left, right, [*sizes, tile.rows, tile.columns, tile.num_warps]


def _grid(layout: Sequence[int]) -> tuple[int]:
    return (triton.cdiv(layout[0], layout[4]) * triton.cdiv(layout[1], layout[5]),)


def _options(layout: Sequence[int]) -> dict[str, Any]:
    rows, columns, warps = layout[4:]
    given = layout[3] == 0
    return {"GIVEN": given, "BR": rows, "BC": columns, "num_warps": warps, **NO_FUSION}


@torch.library.custom_op("circuitcore::levels_range", mutates_args=())
def _range(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, layout: Sequence[int]
) -> torch.Tensor:
    return _launch_range(weight, left, right, layout)


def _launch_range(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, layout: Sequence[int]
) -> torch.Tensor:
    """float64 [programs, 3]: smallest and largest raw score and their absolute sum."""
    grid = _grid(layout)
    out = torch.empty(grid[0], 3, dtype=torch.float64, device=weight.device)
    launch(levels_range_kernel, grid, weight, left, right, out, *layout[:4], **_options(layout))
    return out


@_range.register_fake
def _(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, layout: Sequence[int]
) -> torch.Tensor:
    return weight.new_empty(_grid(layout)[0], 3, dtype=torch.float64)


@torch.library.custom_op("circuitcore::levels_histogram", mutates_args=("out", "zeros"))
def _histogram(
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    table: torch.Tensor,
    first: torch.Tensor,
    out: torch.Tensor,
    zeros: torch.Tensor,
    norm: torch.Tensor,
    layout: Sequence[int],
    depth: int,
) -> None:
    _launch_histogram(weight, left, right, table, first, out, zeros, norm, layout, depth)


def _launch_histogram(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, table: torch.Tensor,
    first: torch.Tensor, out: torch.Tensor, zeros: torch.Tensor, norm: torch.Tensor,
    layout: Sequence[int], depth: int,
) -> None:  # fmt: skip
    """Add a layer's counts of digit ``depth`` to out int32 [nodes, 65536], its zeros to [1]."""
    launch(
        levels_histogram_kernel, _grid(layout),
        weight, left, right, table, first, out, zeros, norm, *layout[:4],
        DEPTH=depth, **_options(layout),
    )  # fmt: skip


@torch.library.custom_op(
    "circuitcore::levels_bytes", mutates_args=("level", "index", "node", "count")
)
def _bytes(
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    table: torch.Tensor,
    first: torch.Tensor,
    level: torch.Tensor,
    index: torch.Tensor,
    node: torch.Tensor,
    count: torch.Tensor,
    norm: torch.Tensor,
    layout: Sequence[int],
    start: int,
) -> None:
    _launch_bytes(weight, left, right, table, first, level, index, node, count, norm, layout, start)


def _launch_bytes(
    weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, table: torch.Tensor,
    first: torch.Tensor, level: torch.Tensor, index: torch.Tensor, node: torch.Tensor,
    count: torch.Tensor, norm: torch.Tensor, layout: Sequence[int], start: int,
) -> None:  # fmt: skip
    """Write a layer's level bytes to ``level``, and add its full ties in any order: index plus
    ``start``, node, and how many [1]."""
    launch(
        levels_byte_kernel, _grid(layout),
        weight, left, right, table, first, level, index, node, count, norm, *layout[:4], start,
        len(index), **_options(layout),
    )  # fmt: skip


def score_range(scores: LayerScores, tile: LinearTile | None = None) -> torch.Tensor:
    """Smallest and largest raw score and their absolute sum, float64 [3] on the device."""
    out = _range(*_factors(scores, tile))
    return torch.stack([out[:, 0].min(), out[:, 1].max(), out[:, 2].sum()])


def count_digits(
    layer: Prepared, table: torch.Tensor, first: torch.Tensor, out: torch.Tensor,
    zeros: torch.Tensor, depth: int,
) -> None:  # fmt: skip
    """`_histogram` of a layer; nothing where it is empty."""
    if layer.weight.numel():
        _histogram(
            layer.weight, layer.left, layer.right, table, first, out, zeros,
            layer.norm, layer.layout, depth,
        )  # fmt: skip


def write_bytes(
    layer: Prepared, table: torch.Tensor, first: torch.Tensor, level: torch.Tensor,
    index: torch.Tensor, node: torch.Tensor, count: torch.Tensor, start: int,
) -> None:  # fmt: skip
    """`_bytes` of a layer; nothing where it is empty."""
    if layer.weight.numel():
        _bytes(
            layer.weight, layer.left, layer.right, table, first, level, index, node, count,
            layer.norm, layer.layout, start,
        )  # fmt: skip


def aot_cases(arch: str) -> list[AotCase]:
    """What the passes launch on fc6 and a target's row of AlexNet by factors, on a convolution's
    given scores, and behind layers whose zeros are counted at addresses 16 does not divide."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        table, first = torch.empty(32, DIGITS, dtype=torch.int16), torch.empty(4, dtype=torch.int32)
        out, zeros = torch.empty(32, DIGITS, dtype=torch.int32), torch.empty(8, dtype=torch.int32)
        fc6, row, conv = torch.empty(4096, 9216), torch.empty(1, 4096), torch.empty(192, 64, 5, 5)
        for scores in (
            LayerScores(fc6, left=fc6.new_empty(20, 4096), right=fc6.new_empty(20, 9216)),
            LayerScores(row, left=row.new_empty(20, 1), right=row.new_empty(20, 4096)),
            LayerScores(conv, values=conv),
        ):
            layer = prepared(scores)
            factors = layer.weight, layer.left, layer.right
            _launch_range(*factors, layer.layout)
            level = torch.empty(scores.weight.numel(), dtype=torch.uint8)
            index, node = torch.empty(1, dtype=torch.int64), torch.empty(1, dtype=torch.int32)
            start = 16  # every layer's bytes begin at an address that 16 divides
            _launch_bytes(
                *factors, table, first, level, index, node, node, layer.norm, layer.layout, start
            )
            for depth in range(KEY_DIGITS):
                _launch_histogram(
                    *factors, table, first, out, zeros[1:], layer.norm, layer.layout, depth
                )
    return distinct(case_of("levels", record) for record in launches)
