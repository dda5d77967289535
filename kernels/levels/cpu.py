"""Level selection on the CPU: the numba passes behind `levels`.

A pass walks the layer in row-major order, one chunk a thread, in blocks of at most 1024 columns.
For a block it computes the raw scores from the factors (vectorised), turns each into an
order-preserving 32-bit integer and walks the trie of `trie`, digit by digit, with the
undecided packed after each.  The chunks' integer counts are summed, so the result does not depend
on the number of threads; the float sum of `score_range` runs over 64 fixed chunks for that reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import get_num_threads, prange

from circuitcore.kernels.compilers import numba_jit
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.trie import DIGITS, Trie
from circuitcore.kernels.score_linear.factors import FORM_CODES

MAX_CHUNKS = 16
RANGE_CHUNKS = 64
BLOCK = 1024
NO_TIES = np.zeros((2, 1, 0), np.uint32)
NO_LEVEL = np.zeros(0, np.uint8)


@numba_jit()
def _raw_block(weight, left, right, form, row, column, raw):  # type: ignore
    """raw = the scores of a run of one row's columns; the one place they are computed.

    weight and raw are the run.  Loops index slices from 0: an index that might be negative would
    keep the compiler from vectorising.
    """
    count = raw.shape[0]
    factors = right[0, column : column + count]
    if form == 0:
        raw[:] = factors
        return
    factor = left[0, row]
    for j in range(count):
        raw[j] = factor * factors[j]
    for n in range(1, left.shape[0]):
        factor = left[n, row]
        factors = right[n, column : column + count]
        for j in range(count):
            raw[j] += factor * factors[j]
    if form == 1:
        for j in range(count):
            raw[j] *= abs(weight[j])
    else:
        for j in range(count):
            raw[j] *= weight[j]
        if form == 3:
            for j in range(count):
                raw[j] = abs(raw[j])


@numba_jit()
def _key_block(raw, offset, scale, score, key):  # type: ignore
    """key = order-preserving integers of (raw - offset) * scale; key views score's bits."""
    for j in range(raw.shape[0]):
        score[j] = (raw[j] - offset) * scale + np.float32(0.0)
    for j in range(raw.shape[0]):
        bits = np.int32(key[j])
        key[j] = np.int32(bits ^ np.int32((bits >> 31) | np.int32(-0x80000000)))


@numba_jit()
def _enter(key, trie, level, place, node):  # type: ignore
    """First digit of a run: the byte where it decides; the others' places and nodes, packed.

    Every element is stored and the end moves on only past the undecided: no branch to mispredict.
    """
    row = trie[0]
    undecided = np.uint64(0)
    for j in range(key.shape[0]):
        entry = row[key[j] >> np.uint32(16)]
        level[j] = entry
        place[undecided] = j
        node[undecided] = ~entry
        undecided += np.uint64(entry < 0)
    return np.int64(undecided)


@numba_jit()
def _descend(source, at, trie, first, level, place, node, count):  # type: ignore
    """One more digit (number ``at``) for the first ``count`` undecided; how many still are."""
    shift, mask = np.uint32(16 * (1 - at % 2)), np.uint32(0x7FFF if at == 2 else 0xFFFF)
    undecided = np.uint64(0)
    for q in range(count):
        j = place[q]
        entry = trie[np.uint64(first + node[q]), (source[j] >> shift) & mask]
        level[j] = entry
        place[undecided] = j
        node[undecided] = ~entry
        undecided += np.uint64(entry < 0)
    return np.int64(undecided)


@numba_jit()
def _count(source, at, place, node, count, out):  # type: ignore
    """out[node, digit ``at``] += 1 for the undecided."""
    shift, mask = np.uint32(16 * (1 - at % 2)), np.uint32(0x7FFF if at == 2 else 0xFFFF)
    for q in range(count):
        out[np.uint64(node[q]), (source[place[q]] >> shift) & mask] += np.uint32(1)


@numba_jit()
def _count_first(key, out):  # type: ignore
    for j in range(key.shape[0]):
        out[key[j] >> np.uint32(16)] += np.uint32(1)


@numba_jit()
def _count_zeros(raw):  # type: ignore
    zeros = np.int32(0)
    for j in range(raw.shape[0]):
        zeros += np.int32(raw[j] == 0)
    return zeros


@numba_jit(parallel=True)
def _pass(  # type: ignore
    weight, bits, left, right, form, columns, offset, scale, depth, trie, first,
    out, level, ties,
):  # fmt: skip
    """One reading of a layer: a histogram of digit ``depth``, or (level not empty) the bytes.

    out [chunks, nodes, 65536] is added to.  With the bytes go the full ties: ties[0, chunk] gets
    their indices in order, ties[1, chunk] their nodes.  Returns a number a chunk: raw scores that
    are 0 (depth 0), or full ties.
    """
    total, chunks = weight.shape[0], out.shape[0]
    write = level.shape[0] > 0
    found = np.zeros(chunks, np.int64)
    for chunk in prange(chunks):
        raw = np.empty(BLOCK, np.float32)
        score = np.empty(BLOCK, np.float32)
        scratch = np.empty(BLOCK, np.uint8)
        place = np.empty(BLOCK + 1, np.uint16)
        node = np.empty(BLOCK + 1, np.int16)
        start, stop = total * chunk // chunks, total * (chunk + 1) // chunks
        many = 0
        while start < stop:
            row = start // columns
            column = start - row * columns
            count = min(BLOCK, columns - column, stop - start)
            end = start + count
            _raw_block(weight[start:end], left, right, form, row, column, raw[:count])
            key = score[:count].view(np.uint32)
            _key_block(raw[:count], offset, scale, score[:count], key)
            if depth == 0 and not write:
                many += _count_zeros(raw[:count])
                _count_first(key, out[chunk, 0])
            else:
                target = level[start:end] if write else scratch
                left_over = _enter(key, trie, target, place, node)
                for at in range(1, depth):
                    source = key if at < 2 else bits[start:end]
                    left_over = _descend(
                        source, at, trie, first[at], target, place, node, left_over
                    )
                if write:
                    for q in range(left_over):
                        ties[0, chunk, many] = start + place[q]
                        ties[1, chunk, many] = node[q]
                        many += 1
                else:
                    source = key if depth < 2 else bits[start:end]
                    _count(source, depth, place, node, left_over, out[chunk])
            start = end
        found[chunk] = many
    return found


@numba_jit(parallel=True)
def scan_range(weight, left, right, form, columns):  # type: ignore
    """Smallest, largest and absolute sum a chunk; a NaN shows in the sum."""
    total = weight.shape[0]
    low = np.full(RANGE_CHUNKS, np.inf, np.float32)
    high = np.full(RANGE_CHUNKS, -np.inf, np.float32)
    sums = np.zeros(RANGE_CHUNKS, np.float64)
    for chunk in prange(RANGE_CHUNKS):
        raw = np.empty(BLOCK, np.float32)
        start, stop = total * chunk // RANGE_CHUNKS, total * (chunk + 1) // RANGE_CHUNKS
        least, most, absolute = np.float32(np.inf), np.float32(-np.inf), 0.0
        while start < stop:
            row = start // columns
            column = start - row * columns
            count = min(BLOCK, columns - column, stop - start)
            _raw_block(weight[start : start + count], left, right, form, row, column, raw[:count])
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
        factors = (np.zeros((1, 1), np.float32), values, 0, values.shape[1])
    else:
        assert layer.left is not None and layer.right is not None
        left, right = (t.detach().float().contiguous().numpy() for t in (layer.left, layer.right))
        factors = (left, right, FORM_CODES[layer.form], right.shape[1])
    return weight, weight.view(np.uint32), *factors


def score_range(layer: LayerScores) -> tuple[float, float, float]:
    weight, _, left, right, form, columns = _arrays(layer)
    low, high, sums = scan_range(weight, left, right, form, columns)
    return float(low.min()), float(high.max()), float(sums.sum())


class Passes:
    """The passes over a list of layers on the CPU, as `trie.select` calls them."""

    def __init__(self, layers: list[LayerScores]) -> None:
        self.layers = [
            (*_arrays(layer), np.float32(layer.offset), np.float32(layer.scale)) for layer in layers
        ]
        self.shapes = [layer.weight.shape for layer in layers]
        self.chunks = min(MAX_CHUNKS, get_num_threads())
        self.zero: tuple[int, ...] = ()

    def histogram(self, trie: Trie, nodes: int) -> np.ndarray:
        """Counts int64 [nodes, 65536] of digit ``trie.depth`` among the weights still undecided."""
        table, first = trie.table()
        out = np.zeros((self.chunks, nodes, DIGITS), np.uint32)
        found = [
            int(_pass(*layer, trie.depth, table, first, out, NO_LEVEL, NO_TIES).sum())
            for layer in self.layers
        ]
        if trie.depth == 0:
            self.zero = tuple(found)
        return out.sum(0, dtype=np.int64)

    def levels(self, trie: Trie, cuts: np.ndarray, tied: int) -> list[torch.Tensor]:
        """The bytes.  cuts [nodes, levels]: of a node's full ties, level t prunes the first
        cuts[node, t]; ``tied``: how many full ties there are."""
        table, first = trie.table()
        out = np.zeros((self.chunks, 1, 1), np.uint32)
        seen = np.zeros(len(cuts), np.int64)
        levels = []
        for layer, shape in zip(self.layers, self.shapes, strict=True):
            level = np.empty(layer[0].shape[0], np.uint8)
            room = min(tied, -(-len(level) // self.chunks))
            ties = np.empty((2, self.chunks, room), np.uint32)
            found = _pass(*layer, trie.depth, table, first, out, level, ties)
            index, node = (
                np.concatenate([part[:many] for part, many in zip(whole, found, strict=True)])
                for whole in ties
            )
            for slot, cut in enumerate(cuts):
                mine = index[node == slot]
                rank = np.arange(seen[slot], seen[slot] + len(mine))
                level[mine] = np.searchsorted(cut, rank, side="right")
                seen[slot] += len(mine)
            levels.append(torch.from_numpy(level).view(shape))
        return levels
