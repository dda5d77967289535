"""Where every level cuts, found on the GPU between two histograms: the device half of `trie`.

Of each undecided node there is a histogram of the next digit and how many of its weights each level
prunes.  Three small kernels make of them the nodes' rows of the trie and the nodes below:
`levels_search_kernel` finds the digit each level cuts through, `levels_nodes_kernel` numbers those
digits (a level cuts in one node only, and levels ascend, so their order is the levels'), and
`levels_rows_kernel` writes the rows.  Nothing waits for the host; a stage's selection is read once,
when it is done.  There are never more nodes than levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded
from circuitcore.kernels.levels.trie import DIGITS, FINITE

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

BLOCK = 256  # digits a step
WARPS = 8


@triton.jit
def levels_search_kernel(
    histogram,  # *i32 [nodes, 65536]
    wanted,  # *i32 [nodes, LP]: weights of a node that each level prunes
    found,  # *i32 [3, nodes, LP]: digits pruned whole, weights in them, weights of the next digit
    told,  # *i32 [levels + 3]: counts reached, scores that are not finite, cut weights, nodes below
    nodes, levels,
    FIRST: tl.constexpr, LP: tl.constexpr, BD: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0)
    level = tl.arange(0, LP)
    want = tl.load(wanted + node * levels + level, level < levels, other=0)
    whole = tl.zeros((LP,), tl.int32)
    before = tl.zeros((LP,), tl.int32)
    upto = tl.full((LP,), 0x7FFFFFFF, tl.int32)  # weights up to and with the digit that is cut
    total = 0
    bad = 0
    histogram += node.to(tl.int64) * 65536
    for start in range(0, 65536, BD):
        digit = start + tl.arange(0, BD)
        count = tl.load(histogram + digit)
        through = tl.cumsum(count, axis=0) + total
        total += tl.sum(count, axis=0)
        if FIRST:
            bad += tl.sum(tl.where((digit < LOW) | (digit >= HIGH), count, 0), axis=0)
        inside = through[:, None] <= want[None, :]
        whole += tl.sum(inside.to(tl.int32), axis=0)
        before = tl.maximum(before, tl.max(tl.where(inside, through[:, None], 0), axis=0))
        beyond = tl.where(inside, 0x7FFFFFFF, through[:, None])
        upto = tl.minimum(upto, tl.min(beyond, axis=0))
    at = found + node * LP + level
    tl.store(at, whole)
    tl.store(at + nodes * LP, before)
    tl.store(at + 2 * nodes * LP, upto - before)
    if FIRST:
        tl.store(told + levels, bad)


@triton.jit
def levels_nodes_kernel(
    wanted, found,
    below,  # *i32 [levels, levels]: what `wanted` is of the nodes below
    cut,  # *i32 [3, LP]: node, digit and node below of each level's cut; node -1: none
    told,
    first,  # *i32 [1]: where the nodes below start in the trie; -1 where there are none
    nodes, levels,
    SNAP: tl.constexpr, LP: tl.constexpr,
):  # fmt: skip
    level = tl.arange(0, LP)
    place = tl.full((LP,), -1, tl.int32)
    moved = tl.zeros((LP,), tl.int32)
    size = tl.zeros((LP,), tl.int32)
    for node in range(0, nodes):
        at = node * LP + level
        want = tl.load(wanted + node * levels + level, level < levels, other=0)
        whole = tl.load(found + at)
        before = tl.load(found + nodes * LP + at)
        inside = tl.load(found + 2 * nodes * LP + at)
        through = (want > before) & (whole < 65536)
        if SNAP:  # the digit is pruned whole instead
            moved += tl.where(through, before + inside - want, 0)
            tl.store(found + at, whole + through.to(tl.int32))
        else:
            place = tl.where(through, node * 65536 + whole, place)
            size = tl.where(through, inside, size)
    if SNAP:
        reached = tl.load(told + level, level < levels, other=0)
        tl.store(told + level, reached + moved, level < levels)
    # the first level that cuts a digit: its place is above all places of the levels before
    highest = tl.associative_scan(place, 0, _largest)
    tl.store(cut + level, highest)
    tl.debug_barrier()
    earlier = tl.load(cut + level - 1, mask=level > 0, other=-1)
    new = (place >= 0) & (place > earlier)
    child = tl.cumsum(new.to(tl.int32), axis=0) - 1
    tl.debug_barrier()
    tl.store(cut + level, tl.where(place >= 0, place // 65536, -1))
    tl.store(cut + LP + level, place % 65536)
    tl.store(cut + 2 * LP + level, child)
    count = tl.sum(new.to(tl.int32), axis=0)
    tl.store(told + levels + 1, tl.sum(tl.where(new, size, 0), axis=0))
    tl.store(told + levels + 2, count)
    tl.store(first, tl.where(count > 0, tl.load(first), -1))
    tl.debug_barrier()
    for t in range(0, levels):
        node = tl.load(cut + t)
        child_of = tl.load(cut + 2 * LP + t)
        if node >= 0:
            start = tl.load(found + nodes * LP + node * LP + t)
            weights = tl.load(found + 2 * nodes * LP + node * LP + t)
            rest = tl.load(wanted + node * levels + level, level < levels, other=0) - start
            rest = tl.minimum(tl.maximum(rest, 0), weights)
            tl.store(below + child_of * levels + level, rest, level < levels)


@triton.jit
def _largest(one, other):
    return tl.maximum(one, other)


@triton.jit
def levels_rows_kernel(
    found, cut,
    rows,  # *i16 [nodes, 65536]
    levels,
    LP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0)
    digit = tl.program_id(1) * BD + tl.arange(0, BD)
    entry = tl.zeros((BD,), tl.int32)
    for t in range(0, levels):  # a level that prunes the digits below `whole` keeps the rest
        whole = tl.load(found + node * LP + t)
        entry += (whole <= digit).to(tl.int32)
    for t in range(0, levels):
        mine = tl.load(cut + t) == node
        child = tl.load(cut + 2 * LP + t)
        entry = tl.where(mine & (digit == tl.load(cut + LP + t)), -child - 1, entry)
    tl.store(rows + node.to(tl.int64) * 65536 + digit, entry.to(tl.int16))


def width(levels: int) -> int:
    """Levels as the kernels hold them: a power of two."""
    return max(16, 1 << (max(levels, 1) - 1).bit_length())


def launch_refine(
    histogram: torch.Tensor, wanted: torch.Tensor, rows: torch.Tensor, told: torch.Tensor,
    first: torch.Tensor, depth: int, snap: bool, block: int = BLOCK,
) -> torch.Tensor:  # fmt: skip
    """What `gpu_select.refine` does, in three launches; ``block``: digits a step."""
    (nodes, levels), device = wanted.shape, wanted.device
    places = width(levels)
    found = torch.empty(3, nodes, places, dtype=torch.int32, device=device)
    below = torch.zeros(levels, levels, dtype=torch.int32, device=device)
    cut = torch.empty(3, places, dtype=torch.int32, device=device)
    launch(
        levels_search_kernel, (nodes,), histogram, wanted, found, told, nodes, levels,
        FIRST=depth == 0, LP=places, BD=block, LOW=FINITE[0], HIGH=FINITE[1], num_warps=WARPS,
    )  # fmt: skip
    launch(
        levels_nodes_kernel, (1,), wanted, found, below, cut, told, first, nodes, levels,
        SNAP=snap, LP=places, num_warps=1,
    )  # fmt: skip
    launch(
        levels_rows_kernel, (nodes, DIGITS // (2 * block)), found, cut, rows, levels,
        LP=places, BD=2 * block, num_warps=4,
    )  # fmt: skip
    return below


def aot_cases(arch: str) -> list[AotCase]:
    """What a selection of the default 32 levels launches: of the root, and of 32 nodes."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        for depth, snap in ((0, False), (1, True), (1, False)):
            nodes, numbers = 1 if depth == 0 else 32, torch.int32
            launch_refine(
                torch.empty(nodes, DIGITS, dtype=numbers), torch.empty(nodes, 32, dtype=numbers),
                torch.empty(1 + nodes, DIGITS, dtype=torch.int16)[1:],
                torch.empty(35, dtype=numbers), torch.empty(4, dtype=numbers)[1:], depth, snap,
            )  # fmt: skip
    return distinct(case_of("levels", record) for record in launches)
