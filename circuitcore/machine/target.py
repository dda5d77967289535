"""Devices that a sweep's seconds are predicted for, and what is assumed of them: one table.

Nothing here was measured on a GPU.  Peak rates, bandwidths and the part of a rate that masked
linear layers reach are those of `kernels.masked.gpu_cost`; every other number stands below with
its source, or says that it is an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from circuitcore.errors import UsageError, nearest
from circuitcore.kernels.masked.gpu_cost import (
    ITEM_BYTES,
    KINDS,
    LAUNCH,
    NAMED,
    REACHED,
    Device,
    MaskedShape,
    cheapest,
    traffic,
)
from circuitcore.machine.device import Machine

MARK = "predicted from counts, not measured"
CONV_REACHED = 450e12 / 989.4e12  # of the matrix peak: 450 TFLOP/s of an H100's in bfloat16
BANDWIDTH_REACHED = 0.9
REPLAY, REPLAYED = 10e-6, 1e-6  # seconds a replay, and a kernel in it
SYNC = 20e-6
LINK = {4: 31.5e9, 5: 63e9}  # bytes a second each way of 16 lanes, by PCIe generation
LINK_REACHED = 0.8
CORES = 16
DECODE = 6e-3  # seconds an image on one core
SCREENING = {"first-crossing": 0.032, "sparsest-above": 0.148}  # seconds of the host a category
JUDGING, TESTING = 0.006, 0.022  # before its looks; after them, on the thread that commits
HASHED, HASH_LAUNCHES = 20, 7  # bytes a weight of a random mask, launches beside one a layer
COMMIT_BYTE = 10e-9  # seconds a byte of masks: hashed twice, written
CHANNELS = {2: 8, 4: 4}  # input channels are filled up to so many on matrix units, by item bytes

ASSUMED: tuple[tuple[str, str], ...] = (
    ("convolutions reach 0.455 of the matrix peak (450 TFLOP/s, H100, bfloat16), IEEE float32 "
     "0.7 of its own", "assumption"),
    ("masked linear layers reach 0.6 (Triton) or 0.7 (library) of the peak",
     "assumption, kernels/masked/gpu_cost.py"),
    ("peaks and bandwidths", "data sheets, kernels/masked/gpu_cost.py"),
    ("0.9 of the bandwidth is reached; a kernel takes the longer of its matrix and memory time, "
     "one kernel after another", "assumption"),
    ("channels of a convolution's input filled up to 8 (16-bit) or 4 (TF32)",
     "cuDNN developer guide, tensor core operations; filled by cuDNN itself: assumption"),
    ("a launch 5 us, none of it hidden", "assumption, kernels/masked/gpu_cost.py"),
    ("a graph's replay 10 us and 1 us a kernel in it", "assumption"),
    ("a synchronisation 20 us", "assumption"),
    ("PCIe x16: 31.5 GB/s (gen 4), 63 GB/s (gen 5), 0.8 of it reached",
     "PCI-SIG rates; 0.8: assumption"),
    ("16 cores decode, 6 ms an image and core", "assumption"),
    ("host a category: screening 32 ms (sparsest-above 148), judging 6 ms; beside the next one, "
     "testing 22 ms", "measured: python bench/e2e/looks.py, x86-64, one thread, other jobs beside"),
    ("a random mask takes as long as 20 bytes a weight: three times some 25 instructions",
     "counted by hand in kernels/random_masks/gpu.py"),
    ("a commit 10 ns a byte of masks", "assumption"),
    ("four fifths of the device's memory are free", "assumption"),
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A device by name: its architecture, rates, bytes of memory and PCIe generation."""

    name: str
    arch: str
    device: Device
    memory: int
    pcie: int

    def rate(self, precision: str) -> float:
        """Peak operations a second, of products of ``precision`` (a dtype, ``tf32``)."""
        rates = {"float32": self.device.ieee, "tf32": self.device.tf32}
        return rates.get(precision, self.device.half)

    def conv_rate(self, precision: str) -> float:
        """Operations a second that convolutions and plain products reach."""
        reached = REACHED["library"] if precision == "float32" else CONV_REACHED
        return self.rate(precision) * reached

    @property
    def bandwidth(self) -> float:
        """Bytes of device memory a second that are reached."""
        return self.device.bandwidth * BANDWIDTH_REACHED

    @property
    def link(self) -> float:
        """Bytes a second over PCIe that are reached."""
        return LINK[self.pcie] * LINK_REACHED


TARGETS = {  # bytes of memory and PCIe generation: data sheets
    name: Target(name, *NAMED[name], memory, pcie)
    for name, memory, pcie in (
        ("a100", 80 * 10**9, 4),
        ("l40s", 48 * 10**9, 4),
        ("rtx4090", 24 * 10**9, 4),
        ("h100", 80 * 10**9, 5),
        ("h200", 141 * 10**9, 5),
    )
}


def target_of(name: str) -> Target:
    """The target called ``name``, in any case.  Raises UsageError listing the known ones."""
    known = name.strip().lower()
    if known not in TARGETS:
        listed = ", ".join(TARGETS)
        raise UsageError(f"--target {name}: one of {listed}{nearest(known, list(TARGETS))}")
    return TARGETS[known]


def target_named(device: str) -> Target | None:
    """The target that a device's own name says it is, such as ``NVIDIA H100 80GB HBM3``."""
    words = device.lower().replace("rtx ", "rtx").replace("-", " ").split()
    return next((TARGETS[word] for word in words if word in TARGETS), None)


class TargetMachine(Machine):
    """A target as a machine: nothing is asked of this one."""

    masked_kernels = property(lambda self: self.impl != "torch")  # type: ignore[assignment]
    compacts = property(lambda self: False)  # type: ignore[assignment]


def machine_of(target: Target, dtype: torch.dtype, precision: str, memory: int | None) -> Machine:
    """What a run would compute with; ``memory``: the budget, four fifths of it all if None."""
    budget = target.memory * 4 // 5 if memory is None else memory
    return TargetMachine(torch.device("cuda"), dtype, budget, precision=precision)


@dataclass(frozen=True)
class Work:
    """What is done, in counts: multiply-adds as executed, bytes of device memory, launches outside
    graphs, replays and the kernels in them, synchronisations, bytes over PCIe; ``busy``: seconds of
    the device, kernel by kernel; ``host``: of the host itself.
    """

    multiply_adds: float = 0
    bytes: float = 0
    busy: float = 0
    launches: float = 0
    replays: float = 0
    replayed: float = 0
    syncs: float = 0
    to_device: float = 0
    to_host: float = 0
    host: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def __mul__(self, times: float) -> Work:
        return Work(*(times * value for value in vars(self).values()))

    def seconds(self, target: Target) -> float:
        """Nothing of it hidden behind anything else."""
        waiting = self.launches * LAUNCH + self.replays * REPLAY + self.replayed * REPLAYED
        waiting += self.syncs * SYNC + (self.to_device + self.to_host) / target.link
        return self.busy + waiting + self.host


def kernel(target: Target, multiply_adds: float, moved: float, rate: float = 1.0) -> Work:
    """One kernel on the device: the longer of its matrix and memory time."""
    busy = max(2 * multiply_adds / rate, moved / target.bandwidth)
    return Work(multiply_adds, moved, busy)


def masked_layer(target: Target, shape: MaskedShape) -> tuple[str, Work]:
    """A masked linear layer, its launches apart: how it runs, and what of the device it takes."""
    path = "library" if shape.dtype not in KINDS else cheapest(shape, target.arch)
    masking, moved = traffic(path, shape, target.arch, target.device)
    rate = target.rate(shape.dtype) * REACHED[path]
    product = kernel(target, shape.executed(path, target.arch), moved, rate)
    return path, kernel(target, 0, masking) + product


def item_bytes(precision: str) -> int:
    """Bytes of a number in a sweep of ``precision``."""
    return ITEM_BYTES[precision]
