"""Devices: which ones there are, and what a run computes on and with."""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import dataclass

import torch

from circuitcore.errors import DeviceError, UsageError
from circuitcore.kernels import verdicts
from circuitcore.kernels.compilers import interpreted
from circuitcore.kernels.dispatch import choose_on
from circuitcore.machine.room import cores
from circuitcore.machine.room import free_host_memory as free_host_memory
from circuitcore.options import Options

NO_MEMORY = 512 << 20  # bytes free on a GPU below which a library's own allocation may have failed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """A device by torch's name for it, its own name and its memory in bytes (free now)."""

    device: str
    name: str
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a run computes on and with, resolved once from its options.

    ``dtype``: of sweeps (scores and what is rechecked are float32); ``precision``: of products of
    float32 in a sweep, ``ieee`` or ``tf32``; ``memory``: bytes it may use at
    once; ``impl``: as `kernels.dispatch.choose` takes it; ``fallback``: whether chunks get smaller
    where memory runs out.
    """

    device: torch.device
    dtype: torch.dtype
    memory: int
    impl: str = "auto"
    fallback: bool = True
    precision: str = "ieee"

    @property
    def low(self) -> bool:
        """Whether sweeps run in a lower precision than IEEE float32."""
        return self.dtype != torch.float32 or self.precision == "tf32"

    @property
    def masked_kernels(self) -> bool:
        """Whether stages run in masked kernels: all levels in one pass, nothing is compacted."""
        return choose_on(self.impl, self.device, operation="masked_linear") == "triton"

    @property
    def compacts(self) -> bool:
        """Whether the fc layers run compacted, in the CPU's own kernels."""
        return choose_on(self.impl, self.device, cpu="numba") == "numba"


def machine(options: Options) -> Machine:
    """The machine that options ask for, with the memory that is free now.

    Raises DeviceError where the device is not there or cannot run ``--impl``, UsageError for a name
    that is none.
    """
    device = pick(options)
    if options.impl == "triton" and device.type == "cpu" and not interpreted():
        raise DeviceError(f"--impl triton needs a GPU, this runs on the {device}: --impl auto")
    try:
        choose_on(options.impl, device)
    except ValueError as error:
        raise DeviceError(f"--impl {options.impl} on {device}: {error}") from None
    if options.impl == "triton" and (wrong := verdicts.failed(device)):
        names = ", ".join(sorted(wrong))
        warnings.warn(f"--impl triton uses what failed the self-test: {names}", stacklevel=2)
    return Machine(
        device,
        _dtype(options, device),
        memory_budget(options, device),
        options.impl,
        not options.no_fallback,
        options.precision if device.type == "cuda" else "ieee",
    )


def list_devices() -> list[Device]:
    """The GPUs torch can see, then the CPU."""
    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, _ = torch.cuda.mem_get_info(index)
            found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), free))
    found.append(Device("cpu", f"{cores()} cores", free_host_memory()))
    return found


def in_use() -> list[int]:
    """The GPUs that this process holds memory of; to ask another one would take some of its own."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]


def empty_caches() -> None:
    """Give the memory that torch keeps for later back to the GPUs in use.

    Also what objects hold that refer to one another and to nothing else.  On each GPU in turn:
    torch would begin to use the current one, whichever that is.
    """
    gc.collect()
    for index in in_use():
        with torch.cuda.device(index):
            torch.cuda.empty_cache()


def exhausted() -> bool:
    """Whether a GPU in use has no memory left, whatever a library made of it."""
    return any(torch.cuda.mem_get_info(index)[0] < NO_MEMORY for index in in_use())


def pick(options: Options) -> torch.device:
    """The device of a run: ``--gpu N``, ``--device NAME``, else the first GPU, else the CPU.

    Raises DeviceError listing the devices there are, UsageError for a name that is none.
    """
    wanted = f"cuda:{options.gpu}" if options.gpu is not None else options.device
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, number = wanted.partition(":")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UsageError(f"--device {wanted}: one of auto, cpu, cuda:0, cuda:1, ...")
    index = int(number or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        there = ", ".join(f"{d.device} ({d.name})" for d in list_devices())
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"; CUDA_VISIBLE_DEVICES={hidden!r} hides others" if hidden is not None else ""
        raise DeviceError(f"no device cuda:{index} here{why}; there are: {there}")
    return torch.device(f"cuda:{index}")


def memory_budget(options: Options, device: torch.device) -> int:
    """Bytes a run may use at once: ``--memory``, else four fifths of what is free now."""
    if options.memory is not None:
        return options.memory
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return int(free_host_memory() * 0.8)


def resolve_dtype(options: Options) -> str:
    """The precision sweeps run in, as a unit's key names it.

    Where float32 may be multiplied as TF32 that is a precision of its own.  ``auto`` is float32:
    whatever runs, each decision, and what is recorded of the chosen levels, is that of float32.
    """
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return "tf32" if dtype == "float32" and options.precision == "tf32" else dtype


def swept_in(options: Options) -> str:
    """The precision of a sweep on a GPU that has bfloat16, which is ``auto`` there.

    Unless TF32 is asked for, or what has no bounds that rounding could be held to: a trained bias,
    a correlation.
    """
    auto = options.dtype == "auto" and options.precision == "ieee" and options.bias != "sgd"
    auto = auto and not options.target
    return "bfloat16" if auto else resolve_dtype(options)


def _dtype(options: Options, device: torch.device) -> torch.dtype:
    """What sweeps compute in: `swept_in` on a GPU that has bfloat16.

    Not on a CPU: there it has not been seen to gain (``python bench/e2e/precision.py``).
    """
    name = swept_in(options) if _has_bfloat16(device) else resolve_dtype(options)
    return DTYPES.get(name, torch.float32)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    own = torch.cuda.get_device_properties(device)
    return torch.version.hip is not None or own.major >= 8
