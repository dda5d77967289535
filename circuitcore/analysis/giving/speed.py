"""How much faster a compacted circuit is than the network it is of, measured side by side."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

MOST_ROUNDS, LEAST_ROUNDS, SECONDS, WARM = 31, 5, 20.0, 2
BATCH = 32


class Speed(BaseModel):
    """Seconds a batch of the circuit and of the unpruned network up to the same target.

    Both are made alike: compacted (of the network nothing but its other outputs is left out, its
    norms are folded too), exported, run by torch on the same images with the same threads, one
    after the other in turn.  ``circuit_seconds``, ``network_seconds``, ``ratio`` (of the two, round
    by round): quartiles [25 %, median, 75 %].  Multiply-adds are of one image.
    """

    model_config = ConfigDict(frozen=True)

    circuit_seconds: tuple[float, float, float]
    network_seconds: tuple[float, float, float]
    ratio: tuple[float, float, float]
    circuit_multiply_adds: int
    network_multiply_adds: int
    batch: int
    rounds: int
    threads: int
    device: str
    torch: str
    command: str

    @property
    def multiply_adds_ratio(self) -> float | None:
        """The network's multiply-adds over the circuit's; None where the circuit has none."""
        mine = self.circuit_multiply_adds
        return self.network_multiply_adds / mine if mine else None


def side_by_side(
    circuit: Callable[[Tensor], Any], network: Callable[[Tensor], Any], images: Tensor
) -> tuple[list[float], list[float]]:
    """Seconds of each round of both, which go in turn, the first of them in turn too."""
    both = (circuit, network)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for function in (*both, *both) * (WARM // 2):
            _timed(function, images)
        end = time.perf_counter() + SECONDS
        for number in range(MOST_ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which].append(_timed(both[which], images))
            if number + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
                break
    return seconds


def _timed(function: Callable[[Tensor], Any], images: Tensor) -> float:
    began = time.perf_counter()
    function(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began


def quartiles(values: list[float] | np.ndarray) -> tuple[float, float, float]:
    """25 %, median, 75 %."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


def device_name(device: torch.device) -> str:
    """A device by its maker's name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return (named[0].strip() if named else platform.processor()) or platform.machine()
