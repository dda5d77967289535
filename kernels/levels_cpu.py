"""Level selection on the CPU: the numba passes behind `levels`.

A pass walks the layer in 16 fixed chunks of the row-major order, in blocks of columns.  For a
block it computes the raw scores from the factors (vectorised), turns each into an order-preserving
32-bit integer and walks the trie of `levels_trie`.  Integer counts a chunk are summed afterwards,
so the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange

from circuitcore.kernels.compilers import numba_jit
from circuitcore.kernels.levels import LayerScores
from circuitcore.kernels.levels_trie import DIGITS, Trie

CHUNKS = 16
BLOCK = 1024
FORM_CODES = {"values": 0, "abs": 1, "signed": 2, "set": 3}


@numba_jit()
def _raw_block(weight, left, right, form, row, column, start, count, raw):  # type: ignore
    """raw[:count] = the scores of one run of a row's columns; the one place they are computed."""
    if form == 0:
        for j in range(count):
            raw[j] = right[0, start + j]
        return
    factor = left[0, row]
    for j in range(count):
        raw[j] = factor * right[0, column + j]
    for n in range(1, left.shape[0]):
        factor = left[n, row]
        for j in range(count):
            raw[j] += factor * right[n, column + j]
    if form == 1:
        for j in range(count):
            raw[j] *= abs(weight[start + j])
    else:
        for j in range(count):
            raw[j] *= weight[start + j]
        if form == 3:
            for j in range(count):
                raw[j] = abs(raw[j])


@numba_jit()
def _key_block(raw, offset, scale, count, score, key):  # type: ignore
    """key[:count] = order-preserving integers of (raw - offset) * scale; key views score's bits."""
    for j in range(count):
        score[j] = (raw[j] - offset) * scale + np.float32(0.0)
    for j in range(count):
        bits = key[j]
        key[j] = bits ^ ((np.uint32(0) - (bits >> np.uint32(31))) | np.uint32(0x80000000))


@numba_jit()
def _digit(key, magnitude, depth):  # type: ignore
    if depth == 0:
        return np.int64(key >> np.uint32(16))
    if depth == 1:
        return np.int64(key & np.uint32(0xFFFF))
    if depth == 2:
        return np.int64(magnitude >> np.uint32(16))
    return np.int64(magnitude & np.uint32(0xFFFF))


@numba_jit(parallel=True)
def _histogram(weight, bits, left, right, form, offset, scale, columns, depth, trie, first, out):  # type: ignore
    """out[chunk, slot, digit] += elements that reach depth ``depth``; returns the zeros a chunk."""
    total = weight.shape[0]
    zeros = np.zeros(CHUNKS, np.int64)
    for chunk in prange(CHUNKS):
        raw = np.empty(BLOCK, np.float32)
        score = np.empty(BLOCK, np.float32)
        key = score.view(np.uint32)
        start, stop = total * chunk // CHUNKS, total * (chunk + 1) // CHUNKS
        zero = 0
        while start < stop:
            row = start // columns
            column = start - row * columns
            count = min(BLOCK, columns - column, stop - start)
            _raw_block(weight, left, right, form, row, column, start, count, raw)
            _key_block(raw, offset, scale, count, score, key)
            if depth == 0:
                for j in range(count):
                    zero += raw[j] == 0
                    out[chunk, 0, key[j] >> np.uint32(16)] += 1
            else:
                for j in range(count):
                    node = trie[0, key[j] >> np.uint32(16)]
                    if node < 0:
                        magnitude = bits[start + j] & np.uint32(0x7FFFFFFF)
                        for at in range(1, depth):
                            node = trie[first[at] - node - 1, _digit(key[j], magnitude, at)]
                            if node >= 0:
                                break
                        if node < 0:
                            out[chunk, -node - 1, _digit(key[j], magnitude, depth)] += 1
            start += count
        zeros[chunk] = zero
    return zeros


@numba_jit(parallel=True)
def _walk(
    weight, bits, left, right, form, offset, scale, columns, trie, first, tied, seen, ranks, write, out
):  # type: ignore
    """Write each weight's byte, or (``write`` false) only count the full ties a chunk, in order.

    seen[chunk, slot]: full ties before the chunk on entry, and after it on return.  A slot's full
    ties get the byte of their rank: tied[slot] minus the slot's ``ranks`` at or above it.
    """
    total = weight.shape[0]
    depth = first.shape[0]
    for chunk in prange(CHUNKS):
        raw = np.empty(BLOCK, np.float32)
        score = np.empty(BLOCK, np.float32)
        key = score.view(np.uint32)
        counter = seen[chunk].copy()
        start, stop = total * chunk // CHUNKS, total * (chunk + 1) // CHUNKS
        while start < stop:
            row = start // columns
            column = start - row * columns
            count = min(BLOCK, columns - column, stop - start)
            _raw_block(weight, left, right, form, row, column, start, count, raw)
            _key_block(raw, offset, scale, count, score, key)
            for j in range(count):
                node = trie[0, key[j] >> np.uint32(16)]
                if node < 0:
                    magnitude = bits[start + j] & np.uint32(0x7FFFFFFF)
                    for at in range(1, depth):
                        node = trie[first[at] - node - 1, _digit(key[j], magnitude, at)]
                        if node >= 0:
                            break
                    if node < 0:
                        slot = -node - 1
                        if write:
                            node = tied[slot]
                            for t in range(ranks.shape[1]):
                                node -= counter[slot] < ranks[slot, t]
                        counter[slot] += 1
                if write:
                    out[start + j] = node
            start += count
        seen[chunk] = counter


@numba_jit(parallel=True)
def _range(weight, left, right, form, columns):  # type: ignore
    """Smallest, largest and absolute sum a chunk; a NaN shows in the sum."""
    total = weight.shape[0]
    low = np.full(CHUNKS, np.inf, np.float32)
    high = np.full(CHUNKS, -np.inf, np.float32)
    sums = np.zeros(CHUNKS, np.float64)
    for chunk in prange(CHUNKS):
        raw = np.empty(BLOCK, np.float32)
        start, stop = total * chunk // CHUNKS, total * (chunk + 1) // CHUNKS
        least, most, absolute = np.float32(np.inf), np.float32(-np.inf), 0.0
        while start < stop:
            row = start // columns
            column = start - row * columns
            count = min(BLOCK, columns - column, stop - start)
            _raw_block(weight, left, right, form, row, column, start, count, raw)
            a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
            for j in range(count):
                least = min(least, raw[j])
                most = max(most, raw[j])
            whole = count - count % 4
            for j in range(0, whole, 4):
                a0 += abs(np.float64(raw[j]))
                a1 += abs(np.float64(raw[j + 1]))
                a2 += abs(np.float64(raw[j + 2]))
                a3 += abs(np.float64(raw[j + 3]))
            for j in range(whole, count):
                a0 += abs(np.float64(raw[j]))
            absolute += (a0 + a1) + (a2 + a3)
            start += count
        low[chunk], high[chunk], sums[chunk] = least, most, absolute
    return low, high, sums


def _arrays(layer: LayerScores) -> tuple[Any, ...]:
    """weight (flat), its bits, left, right, the form's code and the columns of a row."""
    weight = layer.weight.detach().float().contiguous().view(-1).numpy()
    if layer.values is not None:
        values = layer.values.detach().float().contiguous().view(1, -1).numpy()
        factors = (np.zeros((1, 1), np.float32), values, FORM_CODES["values"], values.shape[1])
    else:
        assert layer.left is not None and layer.right is not None
        left, right = (t.detach().float().contiguous().numpy() for t in (layer.left, layer.right))
        factors = (left, right, FORM_CODES[layer.form], right.shape[1])
    return weight, weight.view(np.uint32), *factors


def score_range(layer: LayerScores) -> tuple[float, float, float]:
    weight, _, left, right, form, columns = _arrays(layer)
    low, high, sums = _range(weight, left, right, form, columns)
    return float(low.min()), float(high.max()), float(sums.sum())


class Passes:
    """The passes over a list of layers on the CPU, as `levels_trie.select` calls them."""

    def __init__(self, layers: list[LayerScores]) -> None:
        self.layers = [
            (*_arrays(layer)[:5], np.float32(layer.offset), np.float32(layer.scale),
             _arrays(layer)[5])
            for layer in layers
        ]  # fmt: skip
        self.shapes = [layer.weight.shape for layer in layers]
        self.zero: tuple[int, ...] = ()

    def histogram(self, trie: Trie, slots: int) -> np.ndarray:
        """Counts int64 [slots, 65536] of digit ``trie.depth`` among elements still undecided."""
        table, first = trie.table()
        depth = trie.depth
        out = np.zeros((CHUNKS, slots, DIGITS), np.uint32)
        zero = [int(_histogram(*layer, depth, table, first, out).sum()) for layer in self.layers]
        if depth == 0:
            self.zero = tuple(zero)
        return out.sum(0, dtype=np.int64)

    def levels(self, trie: Trie, tied: np.ndarray, ranks: np.ndarray) -> list[torch.Tensor]:
        """The bytes; full ties of slot s in order, byte tied[s] less the ranks[s] above each."""
        table, first = trie.table()
        slots = max(1, len(tied))
        seen = [np.zeros((CHUNKS, slots), np.int64) for _ in self.layers]
        nothing = np.zeros(0, np.uint8)
        if len(tied):
            for layer, counts in zip(self.layers, seen, strict=True):
                _walk(*layer, table, first, tied, counts, ranks, False, nothing)
            every = np.concatenate(seen)
            before = np.cumsum(every, axis=0) - every
            seen = np.split(before, len(seen))
        out = []
        for layer, counts, shape in zip(self.layers, seen, self.shapes, strict=True):
            level = np.empty(layer[0].shape[0], np.uint8)
            _walk(*layer, table, first, tied, counts.copy(), ranks, True, level)
            out.append(torch.from_numpy(level).view(shape))
        return out
