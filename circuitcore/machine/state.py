"""What the calling program has set globally is set aside while circuitcore runs, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import Lock, RLock
from typing import Any

import torch

_changing = RLock()  # the settings are the process's: one thread at a time where they differ
_setting = Lock()
_held: list[tuple[object, str]] = []  # by whom and how, the last one in force
_callers: list[str] = []  # what was set before the first of `_held`


@contextmanager
def float32_products(precision: str, alone: bool = False) -> Iterator[None]:
    """How a GPU multiplies float32 in matrix products and convolutions: ``ieee`` or ``tf32``.

    A CPU's library does as IEEE has it either way: a caller may have allowed it bfloat16
    (``torch.set_float32_matmul_precision("medium")``).  Put back afterwards, exception or not.  By
    the settings torch has had since 2.9: they decide whatever the older ``allow_tf32`` says, and
    mixing both is an error when the older are read.
    Threads may ask side by side: the caller's settings are back when the last has ended.
    ``alone``: no other thread that asks for the same runs meanwhile, as is needed where threads
    want different ones.
    """
    holder = object()
    with _changing if alone else nullcontext():
        with _setting:
            if not _held:
                _callers[:] = [each.fp32_precision for each in _settings()]
            _held.append((holder, precision))
            _put(_stated())
        try:
            yield
        finally:
            with _setting:
                _held.remove((holder, precision))
                _put(_stated())


@contextmanager
def older_settings_read() -> Iterator[None]:
    """The caller's own settings of float32, for what reads the older ones, as torch's tracer does.

    Nothing is to be computed meanwhile.
    """
    with _changing:
        with _setting:
            _put(_callers)
        try:
            yield
        finally:
            with _setting:
                _put(_stated())


def _settings() -> tuple[Any, ...]:
    """Those of a GPU, three, then those of a CPU."""
    torch_has: Any = torch.backends  # its types do not name these settings
    gpu = torch_has.cuda.matmul, torch_has.cudnn.conv, torch_has.cudnn.rnn
    return *gpu, torch_has.mkldnn.matmul, torch_has.mkldnn.conv


def _put(values: list[str]) -> None:
    for each, value in zip(_settings(), values, strict=bool(values)):
        each.fp32_precision = value


def _stated() -> list[str]:
    """What those who hold the settings want, or the caller's own where nobody does."""
    return [*[_held[-1][1]] * 3, "ieee", "ieee"] if _held else _callers


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run in one known state: gradients, no autocast, IEEE float32, new tensors on the CPU.

    Whatever the caller left on (``torch.no_grad()``, autocast, a default device or dtype) holds
    again afterwards; nothing else of the process is touched.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        # the first loop that numba runs in threads resets how many torch uses
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.enter_context(float32_products("ieee"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
