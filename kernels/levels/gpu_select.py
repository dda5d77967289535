"""The selection behind `levels` where the weights live: `trie.select` without the host's decisions.

The same trie of 16-bit digits, its nodes numbered alike, but a depth has room for as many nodes as
there are levels (each level cuts through one digit at most), and what cuts where is found by
cumulative sums and searches on the device.  All four digits' passes are launched; one whose depth
has no node returns at once (``first`` is negative there).  The host waits once, for the number of
full ties, which sizes their list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuitcore.kernels.levels import gpu, gpu_cuts
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.trie import DIGITS, FINITE, KEY_DIGITS, SCORE_DIGITS
from circuitcore.kernels.masked.tiles import uploaded
from circuitcore.kernels.score_linear.gpu import LinearTile

Selected = tuple[list[torch.Tensor], tuple[int, ...], tuple[int, ...]]
ROOM = 1 << 18  # full ties that a selection nobody waits for has room for


@dataclass(frozen=True)
class Asked:
    """What a selection starts from, on the device: the counts, and where each depth's nodes start.

    ``told`` int32 [levels + 3], ``first`` int32 [5]; neither is written to.
    """

    told: torch.Tensor
    first: torch.Tensor

    @staticmethod
    def of(counts: Sequence[int], device: torch.device) -> Asked:
        """Of the counts of `assign_levels`."""
        first = uploaded([*_starts(len(counts)), -1], device)
        return Asked(uploaded([*counts, 0, 0, 0], device), first)


@dataclass(frozen=True)
class Unwaited:
    """A selection on the device.  ``flat`` uint8: every layer's bytes, ``at`` where they begin;
    ``numbers`` int32 [levels + 3 + layers]: counts reached, scores that are not finite, full ties,
    nodes of these, each layer's scores that are 0.  The bytes hold where no score is not finite
    and there are at most ``room`` ties.
    """

    flat: torch.Tensor
    at: tuple[int, ...]
    numbers: torch.Tensor
    room: int


def select(
    scores: Sequence[LayerScores],
    counts: Sequence[int],
    ties: str,
    tile: LinearTile | None = None,
) -> Selected:
    """Level bytes of every layer, the counts reached, and each layer's scores that are 0.

    Raises ValueError for NaN or infinity, and for 2^31 weights or more: counters have 32 bits.
    """
    layers = [gpu.prepared(layer, tile) for layer in scores]
    levels = len(counts)
    table, first, wanted, told = _decided(layers, Asked.of(counts, layers[0].weight.device), ties)
    numbers = told.tolist()  # the one wait
    broken, tied, slots = numbers[levels : levels + 3]
    if broken:
        raise ValueError("scores are not finite")
    flat, at = _bytes(layers, table, first, wanted[:slots], tied if levels else 0)
    return _split(flat, at, layers), tuple(numbers[:levels]), tuple(numbers[levels + 3 :])


def unwaited(layers: Sequence[gpu.Prepared], asked: Asked, ties: str) -> Unwaited:
    """`select` of one count or more without its wait, as a graph can hold it: ties have room."""
    table, first, wanted, numbers = _decided(layers, asked, ties)
    room = min(ROOM, sum(layer.weight.numel() for layer in layers))
    flat, at = _bytes(layers, table, first, wanted, room)
    return Unwaited(flat, tuple(at), numbers, room)


def _starts(levels: int) -> list[int]:
    """Where each depth's nodes start: one first, then as many as there are levels."""
    return [0, *(1 + levels * depth for depth in range(KEY_DIGITS - 1))]


def _decided(
    layers: Sequence[gpu.Prepared], asked: Asked, ties: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The trie, where its depths start, what levels prune of the full ties' nodes; the numbers."""
    if sum(layer.weight.numel() for layer in layers) >= 2**31:
        raise ValueError("the GPU's counters hold fewer than 2^31 weights")
    device, levels = layers[0].weight.device, len(asked.told) - 3
    starts = _starts(levels)
    table = torch.zeros(1 + (KEY_DIGITS - 1) * levels, DIGITS, dtype=torch.int16, device=device)
    zeros = torch.zeros(len(layers), dtype=torch.int32, device=device)
    told, first = asked.told.clone(), asked.first.clone()
    wanted = told[None, :levels]
    for depth in range(KEY_DIGITS if levels else 1):
        nodes = len(wanted)
        histogram = torch.zeros(nodes, DIGITS, dtype=torch.int32, device=device)
        for number, layer in enumerate(layers):
            gpu.count_digits(layer, table, first, histogram, zeros[number : number + 1], depth)
        rows = table[starts[depth] : starts[depth] + nodes]
        snap = ties == "snap" and depth == SCORE_DIGITS - 1
        below = first[depth + 1 :]
        wanted = _refine(histogram, wanted.clone(), rows, told, below, depth, snap)
    return table, first, wanted, torch.cat([told, zeros])


@torch.library.custom_op("circuitcore::levels_refine", mutates_args=("rows", "told", "first"))
def _refine(
    histogram: torch.Tensor,
    wanted: torch.Tensor,
    rows: torch.Tensor,
    told: torch.Tensor,
    first: torch.Tensor,
    depth: int,
    snap: bool,
) -> torch.Tensor:
    """Write a depth's rows of the table and what follows; what levels prune of the nodes below.

    ``told`` int32 [levels + 3]: counts reached, scores that are not finite, weights in the digits
    cut through, how many those are; ``first``: where the nodes below start, -1 if there are none.
    """
    if histogram.device.type == "cuda" and wanted.shape[1]:
        return gpu_cuts.launch_refine(histogram, wanted, rows, told, first, depth, snap)
    return refine_told(histogram, wanted, rows, told, first, depth, snap)


@_refine.register_fake
def _(
    histogram: torch.Tensor,
    wanted: torch.Tensor,
    rows: torch.Tensor,
    told: torch.Tensor,
    first: torch.Tensor,
    depth: int,
    snap: bool,
) -> torch.Tensor:
    return wanted.new_empty(wanted.shape[1], wanted.shape[1])


def refine_told(
    histogram: torch.Tensor, wanted: torch.Tensor, rows: torch.Tensor, told: torch.Tensor,
    first: torch.Tensor, depth: int, snap: bool,
) -> torch.Tensor:  # fmt: skip
    """`refine` in plain torch, its results where the kernels put them."""
    levels = wanted.shape[1]
    row, below, sizes, moved = refine(histogram, wanted, max(1, levels), snap)
    rows.copy_(row)
    if depth == 0:
        told[levels] = histogram[0, : FINITE[0]].sum() + histogram[0, FINITE[1] :].sum()
    told[:levels] += moved
    told[levels + 1], told[levels + 2] = sizes.sum(), (sizes > 0).sum()
    first[:1] = torch.where((sizes > 0).any(), first[:1], -1)
    return below[:levels].clone()


def refine(
    histogram: torch.Tensor, wanted: torch.Tensor, most: int, snap: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`trie._refine` of all nodes of a depth, waiting for nothing.

    histogram int32 [nodes, 65536]; wanted int32 [nodes, levels], all 0 in a node that is not there.
    Returns rows int16 [nodes, 65536] of the table, wanted and sizes [most] of the nodes below
    (size 0: not there), and how many weights ``snap`` adds to each level.
    """
    through = histogram.cumsum(1, dtype=torch.int32)
    whole = torch.searchsorted(through, wanted.contiguous(), right=True)  # digits pruned whole
    before = torch.where(whole > 0, through.gather(1, (whole - 1).clamp(min=0)), 0)
    cut = (wanted > before) & (whole < DIGITS)
    moved = torch.zeros_like(wanted)
    if snap:
        moved = torch.where(cut, through.gather(1, whole.clamp(max=DIGITS - 1)) - wanted, 0)
        whole, cut = whole + cut, torch.zeros_like(cut)
    nodes = len(histogram)
    ends = torch.zeros(nodes, DIGITS + 1, dtype=torch.int32, device=histogram.device)
    ends.scatter_add_(1, whole, torch.ones_like(whole, dtype=torch.int32))
    row = ends.cumsum(1, dtype=torch.int32)[:, :DIGITS].to(torch.int16)

    # each (node, digit) that some level cuts through once, ascending; what is not there is ``none``
    none = nodes * DIGITS
    place = torch.arange(nodes, device=histogram.device)[:, None] * DIGITS + whole
    keys = torch.where(cut, place, none).flatten().sort().values
    new = keys != none
    new[1:] &= keys[1:] != keys[:-1]
    slot = torch.where(new, new.cumsum(0) - 1, most)
    child = torch.full((most + 1,), none, device=histogram.device).scatter_(0, slot, keys)[:most]
    at = child.clamp(max=none - 1)
    sizes = torch.where(child != none, histogram.flatten()[at], 0)
    start = through.flatten()[at] - histogram.flatten()[at]
    below = (wanted[at // DIGITS] - start[:, None]).clamp(min=0).minimum(sizes[:, None])
    entry = -1 - torch.arange(most, dtype=torch.int16, device=histogram.device)
    spare = torch.cat([row.flatten(), row.new_zeros(1)]).scatter_(0, child, entry)
    return spare[:-1].view(nodes, DIGITS), below, sizes, moved.sum(0, dtype=torch.int32)


def _bytes(
    layers: Sequence[gpu.Prepared], table: torch.Tensor, first: torch.Tensor,
    cuts: torch.Tensor, tied: int,
) -> tuple[torch.Tensor, list[int]]:  # fmt: skip
    """All bytes, and where each layer's begin.  cuts [nodes, levels]: of a node's full ties, at
    most ``tied`` in all, in order of layer and index, level t prunes the first cuts[node, t]."""
    starts = [0]
    for layer in layers:  # each on an address that 16 divides
        starts.append(starts[-1] + -(-layer.weight.numel() // 16) * 16)
    device = table.device
    levels = torch.empty(starts[-1] + 1, dtype=torch.uint8, device=device)
    index = torch.full((max(1, tied),), starts[-1], dtype=torch.int64, device=device)
    node = torch.full((max(1, tied),), len(cuts), dtype=torch.int32, device=device)
    count = torch.zeros(1, dtype=torch.int32, device=device)
    for layer, start in zip(layers, starts, strict=False):
        gpu.write_bytes(layer, table, first, levels[start:], index, node, count, start)
    if tied:
        _settle(levels, index, node.long(), cuts)
    return levels, starts[:-1]


def _split(
    flat: torch.Tensor, at: Sequence[int], layers: Sequence[gpu.Prepared]
) -> list[torch.Tensor]:
    """Each layer's bytes, shaped like its weights."""
    return [
        flat[start : start + layer.weight.numel()].view(layer.shape)
        for layer, start in zip(layers, at, strict=True)
    ]


def _settle(
    levels: torch.Tensor, index: torch.Tensor, node: torch.Tensor, cuts: torch.Tensor
) -> None:
    """Give full ties their bytes: those of a node in the order of their places in all layers.

    Entries of the node behind the last are none, with an index behind the last.
    """
    whole = 1 << 40
    key = (node * whole + index).sort().values
    node, index = key // whole, key % whole
    place = torch.arange(len(key), device=key.device)
    # all nodes' cuts as one ascending list: before a tie lie its own node's and all those before
    steps = torch.arange(len(cuts), device=key.device)[:, None] * whole + cuts
    at = node * whole + (place - torch.searchsorted(node, node))
    byte = torch.searchsorted(steps.flatten(), at, right=True) - node * cuts.shape[1]
    levels.scatter_(0, index, byte.to(torch.uint8))
