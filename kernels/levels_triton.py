"""Level selection on a GPU: the Triton passes behind `levels`.

Each pass reads W once and recomputes the scores from their factors; nothing of a weight's size is
written but the level bytes.  Histograms are integer atomics, so they do not depend on the order of
the programs; scores that are exactly 0, most of them, are summed within a program first, or one
address would take them all.  Full ties are listed in any order and sorted by index afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.levels import LayerScores
from circuitcore.kernels.levels_trie import DIGITS, KEY_DIGITS, Trie
from circuitcore.kernels.score_linear import FORM_CODES, LinearTile, score_tile

if TYPE_CHECKING:
    from circuitcore.kernels.aot import AotCase

FACTORED = LinearTile(8, 256)
GIVEN = LinearTile(1, 2048)  # scores that are given are one long row


@triton.jit
def _layer_tile(
    weight, left, right, R, C, N, form, GIVEN: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):
    """This program's weights, raw scores, offsets and what lies inside; all [BR, BC]."""
    blocks = tl.cdiv(C, BC)
    row = tl.program_id(0) // blocks * BR + tl.arange(0, BR)
    column = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    if GIVEN:
        inside = (row[:, None] < R) & (column[None, :] < C)
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        w = tl.load(weight + at, mask=inside, other=0.0)
        raw = tl.load(right + at, mask=inside, other=0.0)
    else:
        w, raw, at, inside = score_tile(weight, left, right, row, column, R, C, N, form)
    return w, raw, at, inside


@triton.jit
def _order(raw, offset, scale):
    """Order-preserving bits of the normalised score; -0.0 is 0.0."""
    score = (raw - offset) * scale
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) | -0x80000000)


@triton.jit
def _digit(key, magnitude, AT: tl.constexpr):
    source = key if AT < 2 else magnitude
    return (source >> (16 * (1 - AT % 2))) & 0xFFFF


@triton.jit
def _walk(key, magnitude, inside, trie, first, DEPTH: tl.constexpr):
    """Entry of the trie after DEPTH digits (0 outside), and which elements are undecided."""
    entry = tl.load(trie + _digit(key, magnitude, 0), mask=inside, other=0).to(tl.int32)
    undecided = inside & (entry < 0)
    for at in tl.static_range(1, DEPTH):
        row = tl.load(first + at) + ~entry
        below = tl.load(
            trie + row.to(tl.int64) * 65536 + _digit(key, magnitude, at), mask=undecided, other=0
        ).to(tl.int32)
        entry = tl.where(undecided, below, entry)
        undecided = undecided & (entry < 0)
    return entry, undecided


@triton.jit
def levels_range_kernel(
    weight,  # [R, C]
    left,  # [N, R]
    right,  # [N, C], or the scores [R, C]
    out,  # *fp64 [programs, 3]: smallest, largest, absolute sum
    R,
    C,
    N,
    form,
    GIVEN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    _, raw, _, inside = _layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    out += tl.program_id(0) * 3
    low = tl.min(tl.min(tl.where(inside, raw, float("inf")), axis=1), axis=0)
    high = tl.max(tl.max(tl.where(inside, raw, float("-inf")), axis=1), axis=0)
    total = tl.sum(tl.sum(tl.where(inside, tl.abs(raw), 0.0).to(tl.float64), axis=1), axis=0)
    tl.store(out, low.to(tl.float64))
    tl.store(out + 1, high.to(tl.float64))
    tl.store(out + 2, total)


@triton.jit
def levels_histogram_kernel(
    weight,
    left,
    right,
    trie,  # *i16 [nodes, 65536]
    first,  # *i32 [4]: where each depth's nodes start in trie
    out,  # *i32 [nodes of this depth, 65536]
    zeros,  # *i32 [1]
    offset,
    scale,
    R,
    C,
    N,
    form,
    DEPTH: tl.constexpr,
    GIVEN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    w, raw, _, inside = _layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    key = _order(raw, offset, scale)
    magnitude = w.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if DEPTH == 0:
        at = _digit(key, magnitude, 0)
        wanted = inside
    else:
        entry, wanted = _walk(key, magnitude, inside, trie, first, DEPTH)
        at = tl.where(wanted, ~entry, 0) * 65536 + _digit(key, magnitude, DEPTH)
    if DEPTH < 2:  # equal scores have equal digits: add up the zeros here
        zero = wanted & (raw == 0)
        many = tl.sum(tl.sum(zero.to(tl.int32), axis=1), axis=0)
        where = tl.max(tl.max(tl.where(zero, at, 0), axis=1), axis=0)
        tl.atomic_add(out + where, many, mask=many > 0, sem="relaxed")
        wanted = wanted & (raw != 0)
        if DEPTH == 0:
            tl.atomic_add(zeros, many, mask=many > 0, sem="relaxed")
    tl.atomic_add(out + at, 1, mask=wanted, sem="relaxed")


@triton.jit
def levels_byte_kernel(
    weight,
    left,
    right,
    trie,
    first,
    level,  # *u8 [R, C]
    tie_index,  # *i64 [ties]
    tie_node,  # *i32 [ties]
    tie_count,  # *i32 [1]
    offset,
    scale,
    R,
    C,
    N,
    form,
    GIVEN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    w, raw, at, inside = _layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    key = _order(raw, offset, scale)
    magnitude = w.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    entry, tied = _walk(key, magnitude, inside, trie, first, 4)
    tl.store(level + at, entry.to(tl.uint8), mask=inside)
    slot = tl.atomic_add(tie_count + tl.zeros_like(entry), 1, mask=tied, sem="relaxed")
    tl.store(tie_index + slot, at, mask=tied)
    tl.store(tie_node + slot, ~entry, mask=tied)


@dataclass(frozen=True)
class _Layer:
    """A layer's launch: tensors in float32, geometry and tile."""

    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    sizes: tuple[int, int, int, int]  # R, C, N, form
    norm: tuple[float, float]
    shape: torch.Size
    tile: LinearTile

    @property
    def grid(self) -> tuple[int]:
        rows, columns = self.sizes[:2]
        return (-(-rows // self.tile.rows) * -(-columns // self.tile.columns),)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "GIVEN": self.sizes[3] == 0,
            "BR": self.tile.rows,
            "BC": self.tile.columns,
            "num_warps": self.tile.num_warps,
            "enable_fp_fusion": False,
        }


def _layer(layer: LayerScores, tile: LinearTile | None = None) -> _Layer:
    weight = layer.weight.detach().float().contiguous()
    norm = (float(layer.offset), float(layer.scale))
    if layer.values is not None:
        values = layer.values.detach().float().contiguous()
        sizes = (1, weight.numel(), 1, 0)
        return _Layer(weight, values, values, sizes, norm, weight.shape, tile or GIVEN)
    assert layer.left is not None and layer.right is not None
    left, right = (t.detach().float().contiguous() for t in (layer.left, layer.right))
    sizes = (left.shape[1], right.shape[1], left.shape[0], FORM_CODES[layer.form])
    return _Layer(weight, left, right, sizes, norm, weight.shape, tile or FACTORED)


def score_range(scores: LayerScores, tile: LinearTile | None = None) -> tuple[float, float, float]:
    layer = _layer(scores, tile)
    out = torch.empty(layer.grid[0], 3, dtype=torch.float64, device=layer.weight.device)
    levels_range_kernel[layer.grid](
        layer.weight, layer.left, layer.right, out, *layer.sizes, **layer.options
    )
    low, high, total = torch.stack([out[:, 0].min(), out[:, 1].max(), out[:, 2].sum()]).tolist()
    return low, high, total


class Passes:
    """The passes over a list of layers on a GPU, as `levels_trie.select` calls them."""

    def __init__(self, layers: Sequence[LayerScores], tile: LinearTile | None = None) -> None:
        if sum(layer.weight.numel() for layer in layers) >= 2**31:
            raise ValueError("the GPU's counters hold fewer than 2^31 weights")
        self.layers = [_layer(layer, tile) for layer in layers]
        self.device = self.layers[0].weight.device
        self.zero: tuple[int, ...] = ()

    def _table(self, trie: Trie) -> tuple[torch.Tensor, torch.Tensor]:
        table, first = trie.table()
        starts = np.zeros(KEY_DIGITS, np.int32)
        starts[: len(first)] = first
        return torch.from_numpy(table).to(self.device), torch.from_numpy(starts).to(self.device)

    def histogram(self, trie: Trie, nodes: int) -> np.ndarray:
        """Counts int64 [nodes, 65536] of digit ``trie.depth`` among the weights still undecided."""
        table, first = self._table(trie)
        out = torch.zeros(nodes, DIGITS, dtype=torch.int32, device=self.device)
        zeros = torch.zeros(len(self.layers), dtype=torch.int32, device=self.device)
        for number, layer in enumerate(self.layers):
            if layer.grid[0]:
                levels_histogram_kernel[layer.grid](
                    layer.weight, layer.left, layer.right, table, first, out, zeros[number:],
                    *layer.norm, *layer.sizes, DEPTH=trie.depth, **layer.options,
                )  # fmt: skip
        if trie.depth == 0:
            self.zero = tuple(zeros.tolist())
        return out.cpu().numpy().astype(np.int64)

    def levels(self, trie: Trie, cuts: np.ndarray, tied: int) -> list[torch.Tensor]:
        """The bytes.  cuts [nodes, levels]: of a node's full ties, level t prunes the first
        cuts[node, t]; ``tied``: how many full ties there are."""
        table, first = self._table(trie)
        seen = [0] * len(cuts)
        levels = []
        for layer in self.layers:
            level = torch.empty(layer.shape, dtype=torch.uint8, device=self.device)
            room = max(1, min(tied, level.numel()))
            index = torch.empty(room, dtype=torch.int64, device=self.device)
            node = torch.empty(room, dtype=torch.int32, device=self.device)
            count = torch.zeros(1, dtype=torch.int32, device=self.device)
            if layer.grid[0]:
                levels_byte_kernel[layer.grid](
                    layer.weight, layer.left, layer.right, table, first, level, index, node, count,
                    *layer.norm, *layer.sizes, **layer.options,
                )  # fmt: skip
            if tied:
                found = int(count)
                index, order = index[:found].sort()
                node = node[:found][order]
                for slot, cut in enumerate(cuts):
                    mine = index[node == slot]
                    rank = torch.arange(len(mine), device=self.device) + seen[slot]
                    steps = torch.from_numpy(cut).to(self.device)
                    byte = torch.searchsorted(steps, rank, right=True)
                    level.view(-1)[mine] = byte.to(torch.uint8)
                    seen[slot] += len(mine)
            levels.append(level)
        return levels


def aot_cases(arch: str) -> list[AotCase]:
    """Every compilation `levels` can launch: three kernels, factored and given scores."""
    from circuitcore.kernels.aot import AotCase

    scores = dict.fromkeys(("weight", "left", "right"), "*fp32")
    sizes = dict.fromkeys(("R", "C", "N", "form"), "i32")
    norm = {"offset": "fp32", "scale": "fp32"}
    trie = {"trie": "*i16", "first": "*i32"}
    ties = {"level": "*u8", "tie_index": "*i64", "tie_node": "*i32", "tie_count": "*i32"}
    cases = []
    for kind, tile in (("factored", FACTORED), ("given", GIVEN)):
        constants = {"GIVEN": kind == "given", "BR": tile.rows, "BC": tile.columns}
        launches: list[tuple[Any, str, dict[str, str], dict[str, object]]] = [
            (levels_range_kernel, "", {"out": "*fp64"}, {}),
            (levels_byte_kernel, "", {**trie, **ties, **norm}, {}),
        ]
        for depth in range(KEY_DIGITS):
            counts = {**trie, "out": "*i32", "zeros": "*i32", **norm}
            launches.append((levels_histogram_kernel, f"-{depth}", counts, {"DEPTH": depth}))
        for kernel, suffix, arguments, more in launches:
            signature = {**scores, **arguments, **sizes}
            # a given layer is one row: Triton makes an argument of 1 a constant, and 0 divisible
            one: dict[str, object] = {"R": 1, "N": 1} if kind == "given" else {}
            known = {"C", "form"} if kind == "given" else {"R", "C"}
            cases.append(
                AotCase(
                    op="levels",
                    kernel=kernel,
                    config=f"{kind}-{tile.name}{suffix}",
                    dtype="fp32",
                    signature={n: t for n, t in signature.items() if n not in one},
                    constexprs={**constants, **one, **more},
                    num_warps=tile.num_warps,
                    num_stages=3,
                    divisible=tuple(
                        n
                        for n, t in signature.items()
                        if n in known or t[0] == "*" and n != "zeros"
                    ),
                )
            )
    return cases
