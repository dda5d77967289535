"""`random_masks` on a GPU: all layers a launch, hashes in registers, a 32-bit radix selection.

A table says of each layer where its blocks begin, how large it is and which words it is hashed
with.  The first histogram is spread evenly over its 65,536 counters, as hashes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from circuitcore.kernels.compilers import tl, triton
from circuitcore.kernels.launch import launch, recorded
from circuitcore.kernels.masked.tiles import uploaded
from circuitcore.kernels.random_masks.layout import BLOCK, starts

if TYPE_CHECKING:
    from circuitcore.kernels.aot.case import AotCase

DIGITS = 1 << 16
STEP = 1024  # counters a step of the search
WARPS = 8


@triton.jit
def mixed(x):
    """The finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def places(table, L, LP: tl.constexpr, BD: tl.constexpr):
    """This program's layer, its places' hashes, which of them there are, where its mask begins."""
    at = tl.arange(0, LP)
    first = tl.load(table + at, at < L, other=0x7FFFFFFF)  # of each layer, in blocks
    layer = tl.sum((first <= tl.program_id(0)).to(tl.int32), axis=0) - 1
    block = tl.program_id(0) - tl.load(table + layer).to(tl.int32)
    place = block * BD + tl.arange(0, BD)
    hashed = mixed(place.to(tl.uint32) ^ tl.load(table + 2 * L + layer).to(tl.uint32))
    hashed = mixed(hashed ^ tl.load(table + 3 * L + layer).to(tl.uint32))
    return layer, hashed, place < tl.load(table + L + layer)


@triton.jit
def random_masks_count_kernel(
    table,  # *i64 [4, L]: first block, size, first and second word of each layer
    found,  # *i64 [3, L]: digit cut through, places wanted of it, hashes below which all are kept
    out,  # *i32 [L, 65536]
    L,
    LOW: tl.constexpr, LP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    layer, hashed, wanted = places(table, L, LP, BD)
    digit = (hashed >> 16).to(tl.int32)
    if LOW:
        wanted = wanted & (digit == tl.load(found + layer).to(tl.int32))
        digit = (hashed & 0xFFFF).to(tl.int32)
    tl.atomic_add(out + layer * 65536 + digit, 1, mask=wanted, sem="relaxed")


@triton.jit
def random_masks_search_kernel(
    histogram,  # *i32 [L, 65536]
    counts,  # *i64 [L]
    found,
    L,
    LOW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    want = tl.load(found + L + layer if LOW else counts + layer).to(tl.int32)
    digit = 0
    before = 0
    total = 0
    for start in range(0, 65536, BD):
        count = tl.load(histogram + layer * 65536 + start + tl.arange(0, BD))
        through = tl.cumsum(count, axis=0) + total
        below = through < want
        digit += tl.sum(below.to(tl.int32), axis=0)
        before = tl.maximum(before, tl.max(tl.where(below, through, 0), axis=0))
        total += tl.sum(count, axis=0)
    if LOW:
        limit = tl.load(found + layer) * 65536 + digit + 1
        tl.store(found + 2 * L + layer, tl.where(want > 0, limit, 0))
    else:
        tl.store(found + layer, tl.cast(digit, tl.int64))
        tl.store(found + L + layer, (want - before).to(tl.int64))


@triton.jit
def random_masks_write_kernel(
    table, found,
    out,  # *u8 [blocks, BD]
    L,
    LP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    layer, hashed, inside = places(table, L, LP, BD)
    kept = inside & (hashed.to(tl.int64) < tl.load(found + 2 * L + layer))
    at = tl.program_id(0).to(tl.int64) * BD + tl.arange(0, BD)
    tl.store(out + at, kept.to(tl.uint8))


def launch_masks(counts: torch.Tensor, sizes: Sequence[int], words: Sequence[int]) -> torch.Tensor:
    """uint8 [places], each layer's mask at `starts`: five launches, one that clears counters."""
    device, layers, first = counts.device, len(sizes), starts(sizes)
    out = torch.empty(first[-1], dtype=torch.uint8, device=device)
    if not len(out):
        return out
    blocks = [at // BLOCK for at in first[:-1]]
    table = uploaded([*blocks, *sizes, *words[::2], *words[1::2]], device, torch.int64)
    histograms = torch.zeros(2, layers, DIGITS, dtype=torch.int32, device=device)
    found = torch.empty(3, layers, dtype=torch.int64, device=device)
    shape = {"LP": max(2, triton.next_power_of_2(layers)), "BD": BLOCK, "num_warps": WARPS}
    grid = (len(out) // BLOCK,)
    for low, histogram in enumerate(histograms):
        launch(
            random_masks_count_kernel, grid, table, found, histogram, layers, LOW=bool(low), **shape
        )
        launch(
            random_masks_search_kernel, (layers,), histogram, counts, found, layers,
            LOW=bool(low), BD=STEP, num_warps=WARPS,
        )  # fmt: skip
    launch(random_masks_write_kernel, grid, table, found, out, layers, **shape)
    return out


def aot_cases(arch: str) -> list[AotCase]:
    """What the launcher asks for on AlexNet's eight layers, and on a network of 54."""
    from circuitcore.kernels.aot.case import case_of, distinct

    with recorded() as launches, torch.device("meta"):
        for layers in (8, 54):
            counts = torch.empty(layers, dtype=torch.int64)
            launch_masks(counts, [4096] * layers, [0] * 2 * layers)
    return distinct(case_of("random_masks", record) for record in launches)
