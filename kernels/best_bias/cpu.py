"""numba half of `best_bias`: only imported where it runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from circuitcore.kernels.compilers import numba_jit


@numba_jit()
def scan_rows(steps: Any, is_target: Any, norm: int) -> Any:
    """Best interval of every row that starts at a target's step, and the smallest step.

    ``steps`` float64 [L, N], ``is_target`` bool [L, N]; ``norm`` 0 target, 1 other, 2 predicted.
    Returns lo, hi, hits, false_alarms and the row's smallest step, [L] each.
    """
    rows, images = steps.shape
    best_lo, best_hi = np.empty(rows), np.empty(rows)
    best_hits, best_alarms = np.empty(rows, np.int64), np.empty(rows, np.int64)
    least = np.empty(rows)
    for row in range(rows):
        positives = 0
        for n in range(images):
            positives += is_target[row, n]
        own = np.empty(positives)
        at = 0
        for n in range(images):
            if is_target[row, n]:
                own[at] = steps[row, n]
                at += 1
        own.sort()
        # interval j starts at distinct target step own[last of group j]
        upto = np.empty(positives, np.int64)  # target images at or below the group's step
        groups = 0
        for p in range(positives):
            if p + 1 == positives or own[p] < own[p + 1]:
                own[groups] = own[p]
                upto[groups] = p + 1
                groups += 1
        alarms = np.zeros(groups + 1, np.int64)  # others with own[j - 1] < d <= own[j]
        upper = np.full(groups + 1, np.inf)  # smallest other step above own[j - 1]
        least[row] = np.inf
        for n in range(images):
            d = steps[row, n]
            least[row] = min(least[row], d)
            if not is_target[row, n]:
                left, right = 0, groups  # first group whose step is not below d
                while left < right:
                    middle = (left + right) // 2
                    if own[middle] < d:
                        left = middle + 1
                    else:
                        right = middle
                alarms[left] += 1
                if left == groups or d < own[left]:  # d == own[left] is no step of its own
                    upper[left] = min(upper[left], d)

        others = max(images - positives, 1)
        best, near, count = -np.inf, np.inf, 0
        for j in range(groups):
            count += alarms[j]
            hi = upper[j + 1]
            if j + 1 < groups:
                hi = min(hi, own[j + 1])
            hits = upto[j]
            if norm == 0:
                value = (hits - count) / positives
            else:
                divisor = others if norm == 1 else hits + count
                value = (hits * divisor - count * positives) / (positives * divisor)
            away = own[j] if own[j] >= 0 else max(-hi, 0.0)
            if value > best or (value == best and away < near):
                best, near = value, away
                best_lo[row], best_hi[row] = own[j], hi
                best_hits[row], best_alarms[row] = hits, count
    return best_lo, best_hi, best_hits, best_alarms, least


@numba_jit()
def matched_rows(steps: Any, is_target: Any, most_alarms: int) -> Any:
    """Of every row the interval nearest to 0 with the most hits at no more than ``most_alarms``.

    Returns what `scan_rows` does.  Hits are those of b = e, e the end of what is admissible; so
    the intervals with as many start at the largest target step below e, and split at other steps
    alone.  O(N): e by partition, the rest in one pass.
    """
    rows, images = steps.shape
    lo, hi, least = np.empty(rows), np.empty(rows), np.empty(rows)
    hits, alarms = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for row in range(rows):
        others = steps[row][~is_target[row]]
        end = np.inf
        if len(others) > most_alarms:
            end = np.partition(others, most_alarms)[most_alarms]
        start = -np.inf  # the largest target step below the end
        least[row] = np.inf
        for n in range(images):
            d = steps[row, n]
            least[row] = min(least[row], d)
            if is_target[row, n] and d < end:
                hits[row] += 1
                start = max(start, d)
        low, high = start, end
        if start >= 0:  # the first interval is nearest
            for n in range(images):
                d = steps[row, n]
                if d > start:
                    high = min(high, d)
        elif end < 0:  # the last one is
            for n in range(images):
                d = steps[row, n]
                if d < end:
                    low = max(low, d)
        else:  # the one that holds 0 is
            for n in range(images):
                d = steps[row, n]
                if d < 0:
                    low = max(low, d)
                else:
                    high = min(high, d)
        for d in others:
            alarms[row] += d <= low
        lo[row], hi[row] = low, high
    return lo, hi, hits, alarms, least
