"""numba half of `best_bias`, of the most CSA: only imported where it runs."""

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
