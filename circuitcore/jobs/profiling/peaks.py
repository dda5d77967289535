"""What a device can do at most: measured here in a moment, or a GPU's data sheet by its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict

from circuitcore.engine.probe import fastest
from circuitcore.machine.device import Machine
from circuitcore.machine.target import Target, target_named

SIDE = 2048  # of the square matrices that are multiplied
COPIED = 256 << 20  # bytes; larger than any last-level cache
SECONDS = 0.3  # of each measurement
SHEET = "data sheet, kernels/masked/gpu_cost.py"
HERE = f"measured: {SIDE} x {SIDE} matmul and a copy of {COPIED >> 20} MiB, the best of this run"


class Peaks(BaseModel):
    """Multiply-adds and bytes a second of a device, in a precision, and where they come from."""

    model_config = ConfigDict(frozen=True)

    device: str
    precision: str
    multiply_adds: float
    bytes: float
    source: str

    def least(self, multiply_adds: float, moved: float) -> tuple[float, str]:
        """The least seconds that so much takes, and what bounds it: ``matrix`` or ``memory``."""
        matrix, memory = multiply_adds / self.multiply_adds, moved / self.bytes
        return max(matrix, memory), "matrix" if matrix > memory else "memory"

    def or_better(self, other: Peaks) -> Peaks:
        """The higher of each: another job may have had the cores during one of two measurements."""
        best = {"multiply_adds": max(self.multiply_adds, other.multiply_adds),
                "bytes": max(self.bytes, other.bytes)}  # fmt: skip
        return self.model_copy(update=best)


def peaks_of(on: Machine) -> Peaks:
    """Those of a machine: a GPU's data sheet where its name is known, else measured.

    Cost: `SECONDS` twice, and 0.5 GB of memory.
    """
    precision = str(on.dtype).removeprefix("torch.")
    precision = "tf32" if precision == "float32" and on.precision == "tf32" else precision
    if on.device.type == "cuda":
        name = torch.cuda.get_device_name(on.device)
        if (target := target_named(name)) is not None:
            return sheet(target, name, precision)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    a = torch.ones(SIDE, SIDE, device=on.device, dtype=on.dtype)
    product = torch.empty_like(a)
    source = torch.ones(COPIED, dtype=torch.uint8, device=on.device)
    copy = torch.empty_like(source)
    return Peaks(
        device=name,
        precision=precision,
        multiply_adds=SIDE**3 / _best(lambda: torch.mm(a, a, out=product), on),
        bytes=2 * COPIED / _best(lambda: copy.copy_(source), on),
        source=HERE,
    )


def sheet(target: Target, name: str, precision: str) -> Peaks:
    """A GPU's data sheet."""
    rate, moved = target.rate(precision) / 2, target.device.bandwidth
    return Peaks(device=name, precision=precision, multiply_adds=rate, bytes=moved, source=SHEET)


def _best(run: Callable[[], object], on: Machine) -> float:
    """`probe.fastest`, the first run aside."""
    run()
    return fastest(run, on, SECONDS)
