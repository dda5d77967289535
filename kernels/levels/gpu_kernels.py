"""The Triton kernels of `levels`: range, histogram of a digit, level bytes.

Each reads W once and recomputes the scores from their factors; nothing of a weight's size is
written but the level bytes.  Histograms are integer atomics, so they do not depend on the order of
the programs; scores that are exactly 0, most of them, are summed within a program first, or one
address would take them all.  Full ties are listed in any order and sorted by index afterwards.
"""

from __future__ import annotations

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.score_linear.gpu import score_tile


@triton.jit
def layer_tile(
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
def order(raw, offset, scale):
    """Order-preserving bits of the normalised score; -0.0 is 0.0."""
    score = (raw - offset) * scale
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) | -0x80000000)


@triton.jit
def digit(key, magnitude, AT: tl.constexpr):
    source = key if AT < 2 else magnitude
    return (source >> (16 * (1 - AT % 2))) & 0xFFFF


@triton.jit
def walk(key, magnitude, inside, trie, first, DEPTH: tl.constexpr):
    """Entry of the trie after DEPTH digits (0 outside), and which elements are undecided."""
    entry = tl.load(trie + digit(key, magnitude, 0), mask=inside, other=0).to(tl.int32)
    undecided = inside & (entry < 0)
    for at in tl.static_range(1, DEPTH):
        row = tl.load(first + at) + ~entry
        below = tl.load(
            trie + row.to(tl.int64) * 65536 + digit(key, magnitude, at), mask=undecided, other=0
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
    _, raw, _, inside = layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    out += tl.program_id(0) * 3
    low = tl.min(tl.min(tl.where(inside, raw, float("inf")), axis=1), axis=0)
    high = tl.max(tl.max(tl.where(inside, raw, float("-inf")), axis=1), axis=0)
    total = tl.sum(tl.sum(tl.where(inside, tl.abs(raw), 0.0).to(tl.float64), axis=1), axis=0)
    tl.store(out, low.to(tl.float64))
    tl.store(out + 1, high.to(tl.float64))
    tl.store(out + 2, total)


@triton.jit(do_not_specialize_on_alignment=["zeros"])  # one counter of many
def levels_histogram_kernel(
    weight,
    left,
    right,
    trie,  # *i16 [nodes, 65536]
    first,  # *i32 [4]: where each depth's nodes start in trie; below 0 where there are none
    out,  # *i32 [nodes of this depth, 65536]
    zeros,  # *i32 [1]
    norm,  # *fp32 [2]: offset and scale of the normalised score
    R,
    C,
    N,
    form,
    DEPTH: tl.constexpr,
    GIVEN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    if tl.load(first + DEPTH) < 0:  # nothing is undecided
        return
    w, raw, _, inside = layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    key = order(raw, tl.load(norm), tl.load(norm + 1))
    magnitude = w.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if DEPTH == 0:
        at = digit(key, magnitude, 0)
        wanted = inside
    else:
        entry, wanted = walk(key, magnitude, inside, trie, first, DEPTH)
        at = tl.where(wanted, ~entry, 0) * 65536 + digit(key, magnitude, DEPTH)
    if DEPTH < 2:  # equal scores have equal digits: add up the zeros here
        zero = wanted & (raw == 0)
        many = tl.sum(tl.sum(zero.to(tl.int32), axis=1), axis=0)
        where = tl.max(tl.max(tl.where(zero, at, 0), axis=1), axis=0)
        tl.atomic_add(out + where, many, mask=many > 0, sem="relaxed")
        wanted = wanted & (raw != 0)
        if DEPTH == 0:
            tl.atomic_add(zeros, many, mask=many > 0, sem="relaxed")
    tl.atomic_add(out + at, 1, mask=wanted, sem="relaxed")


@triton.jit(do_not_specialize=["room"])
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
    norm,  # *fp32 [2]: offset and scale of the normalised score
    R,
    C,
    N,
    form,
    start,  # of this layer among all: what is added to a tie's index
    room,  # ties that there is room for; what is behind it is counted and not listed
    GIVEN: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    w, raw, at, inside = layer_tile(weight, left, right, R, C, N, form, GIVEN, BR, BC)
    key = order(raw, tl.load(norm), tl.load(norm + 1))
    magnitude = w.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    entry, tied = walk(key, magnitude, inside, trie, first, 4)
    tl.store(level + at, entry.to(tl.uint8), mask=inside)
    slot = tl.atomic_add(tie_count + tl.zeros_like(entry), 1, mask=tied, sem="relaxed")
    listed = tied & (slot < room)
    tl.store(tie_index + slot, at + start, mask=listed)
    tl.store(tie_node + slot, ~entry, mask=listed)
