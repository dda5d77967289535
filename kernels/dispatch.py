"""The one dispatch rule: which implementation runs an operation on a tensor."""

from __future__ import annotations

import torch

from circuitcore.kernels import verdicts
from circuitcore.kernels.compilers import (
    HAS_TRITON,
    interpreted,
    missing,
    use_torch_threads,
    warn_of,
)

IMPLS = ("auto", "torch", "triton", "numba")


def choose(impl: str, tensor: torch.Tensor, cpu: str = "torch", operation: str = "") -> str:
    """`choose_on` the tensor's device, for what is run next: numba on as many threads as torch."""
    chosen = choose_on(impl, tensor.device, cpu, operation)
    if chosen == "numba":
        use_torch_threads()
    return chosen


def choose_on(impl: str, device: torch.device, cpu: str = "torch", operation: str = "") -> str:
    """Name the implementation: ``triton`` on a GPU, the operation's own ``cpu`` choice elsewhere.

    ``impl`` other than ``auto`` forces one.  Where Triton cannot launch for want of a C compiler or
    Python's headers, or the kernels of ``operation`` failed the self-test there, ``auto`` is
    ``torch`` on a GPU, with one warning.  Raises ValueError where the forced one cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLS)}")
    if impl == "auto":
        return _on_gpu(device, operation) if device.type == "cuda" else cpu
    if impl == "triton" and (not HAS_TRITON or device.type == "cuda") and (lacks := missing()):
        raise ValueError(f"impl='triton': {lacks}")
    if impl == "triton" and device.type != "cuda" and not interpreted():
        raise ValueError("impl='triton' needs a tensor on a GPU, or TRITON_INTERPRET=1 on the CPU")
    if impl == "numba" and device.type != "cpu":
        raise ValueError("impl='numba' needs a tensor on the CPU")
    return impl


def _on_gpu(device: torch.device, operation: str) -> str:
    lacks = missing()
    if not lacks and operation and operation in verdicts.failed(device):
        lacks = f"{operation} failed the self-test on {device}: 'circuitcore doctor' says where"
    if not lacks:
        return "triton"
    if HAS_TRITON:  # where it exists it is expected
        warn_of(lacks)
    return "torch"


def architecture(device: torch.device) -> str:
    """``sm_90``, ``gfx942`` ... of a GPU; ``sm_90`` for the interpreter's tensors on the CPU."""
    if device.type != "cuda":
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    named = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return named.split(":")[0] or f"sm_{properties.major}{properties.minor}"
