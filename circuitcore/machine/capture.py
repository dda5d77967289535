"""Work on a GPU captured as a graph: one capture at a time, whichever thread asks."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch

from circuitcore.kernels.spans import CAPTURE, span

Result = TypeVar("Result")

# a capture begins by waiting for the device, which no other may be capturing on meanwhile
_one_at_a_time = Lock()


def captured(
    run: Callable[[], Result], device: torch.device, pool: Any = None
) -> tuple[Any, Result]:
    """``run`` as a graph whose memory is of ``pool``, and what it gave: what a replay writes to.

    It runs once before, so that what libraries and compilers make on first use is not captured.
    Neither of both may wait for the device or copy from the host.
    """
    with torch.cuda.device(device), _one_at_a_time:
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads go on with their own work, and ask for memory, meanwhile
        recording = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
        with span("stage", CAPTURE), recording:
            found = run()
    return graph, found
