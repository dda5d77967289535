"""The one dispatch rule: which implementation runs an operation on a tensor."""

from __future__ import annotations

import torch

from circuitcore.kernels.compilers import HAS_TRITON, interpreted

IMPLS = ("auto", "torch", "triton", "numba")


def choose(impl: str, tensor: torch.Tensor, cpu: str = "torch") -> str:
    """Name the implementation: ``triton`` on a GPU, the operation's own ``cpu`` choice elsewhere.

    ``impl`` other than ``auto`` forces one.  Raises ValueError where the forced one cannot run.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r}: one of {', '.join(IMPLS)}")
    if impl == "auto":
        return "triton" if tensor.is_cuda and HAS_TRITON else (cpu if not tensor.is_cuda else "torch")
    if impl == "triton" and not HAS_TRITON:
        raise ValueError("impl='triton': Triton is not installed (it exists for Linux only)")
    if impl == "triton" and not tensor.is_cuda and not interpreted():
        raise ValueError("impl='triton' needs a tensor on a GPU, or TRITON_INTERPRET=1 on the CPU")
    if impl == "numba" and tensor.device.type != "cpu":
        raise ValueError("impl='numba' needs a tensor on the CPU")
    return impl
