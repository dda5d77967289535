"""Every Triton kernel on the device at hand against plain torch: is what it gives right here?

A kernel passes where its error against float64 is at most twice that of plain torch in the same
precision, integers where they are equal.  Both are relative to the largest exact number.  Each
operation says what to run in ``trials`` of its folder, at small sizes and at
those of real networks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from circuitcore.kernels import verdicts
from circuitcore.kernels.compilers import HAS_TRITON, missing
from circuitcore.kernels.trial import Tensors, Trial, float32_products
from circuitcore.kernels.verdicts import FAILED, PASSED, UNTESTED
from circuitcore.progress import Progress, Silent

ROUNDING = 2.0**-24  # of one float32 addition
SLACK = 1e-6  # relative: what an order of summation may change where torch errs not at all


@dataclass(frozen=True)
class Outcome:
    """One trial: ``state`` is passed, failed or not tested; ``found``: errors, or why."""

    operation: str
    what: str
    dtype: str
    state: str
    found: str


def collect() -> list[tuple[str, Trial]]:
    """(operation, trial), all there are: small ones first, so that a fault is found early."""
    found = [
        (name, trial)
        for name in verdicts.operations()
        for trial in importlib.import_module(f"circuitcore.kernels.{name}.trials").trials()
    ]
    return sorted(found, key=lambda each: each[1].real)


def check(device: torch.device, shown: Progress | None = None) -> list[Outcome]:
    """Run every trial on a GPU and keep what `dispatch` is to follow.  Raises OSError."""
    outcomes = run(device, collect(), shown)
    keep(device, outcomes)
    return outcomes


def keep(device: torch.device, outcomes: Iterable[Outcome]) -> None:
    """Have `dispatch` follow what was found, in this process and later ones.  Raises OSError."""
    verdicts.keep(device, judged(outcomes))


def judged(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """The state of each operation: failed where one trial did, passed where one did and none
    failed."""
    states: dict[str, set[str]] = {}
    for outcome in outcomes:
        states.setdefault(outcome.operation, set()).add(outcome.state)
    order = (FAILED, PASSED, UNTESTED)
    return {name: next(s for s in order if s in found) for name, found in states.items()}


def run(
    device: torch.device, chosen: Sequence[tuple[str, Trial]], shown: Progress | None = None
) -> list[Outcome]:
    """Run trials in order.  Once a device has faulted nothing more is asked of it."""
    shown = shown or Silent()
    shown.start("kernels", len(chosen))
    outcomes = []
    gone = missing() if device.type == "cuda" or not HAS_TRITON else ""
    for operation, trial in chosen:
        shown.advance(0, operation)
        blank = Outcome(operation, trial.what, trial.dtype, UNTESTED, gone)
        outcome = blank if gone else _tried(blank, trial, device)
        if outcome.state == FAILED and not gone:
            gone = _faulted(device)
        outcomes.append(outcome)
        shown.advance()
    return outcomes


def _tried(blank: Outcome, trial: Trial, device: torch.device) -> Outcome:
    """One trial; what it raises is its failure, but for memory that is used by others."""
    try:
        with torch.inference_mode(), float32_products(trial.dtype):
            state, found = compared(trial, device)
    except torch.OutOfMemoryError:
        state, found = UNTESTED, "not enough free memory"
    except Exception as error:  # a compiler's, a launch's, the driver's
        lines = str(error).strip().splitlines() or [""]
        state, found = FAILED, f"{type(error).__name__}: {lines[0]}"
    return replace(blank, state=state, found=found)


def _faulted(device: torch.device) -> str:
    """Why a device cannot go on after a failure; "" where it can."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            return f"the device faulted before: {str(error).strip().splitlines()[0]}"
    return ""


def compared(trial: Trial, device: torch.device) -> tuple[str, str]:
    """(state, errors) of one trial, run twice: a race gives other numbers."""
    given = trial.arguments(device)
    plain = _listed(trial.reference(**given))
    if plain[0].is_floating_point():
        exact = _listed(trial.reference(**{name: _double(v) for name, v in given.items()}))
    else:
        exact = plain
    for tensor in plain:  # memory that a kernel gets next and does not write shows
        torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 77)
    found, again = (_listed(trial.kernel(**given)) for _ in range(2))
    shapes = [tuple(t.shape) for t in found], [tuple(t.shape) for t in exact]
    if shapes[0] != shapes[1]:
        return FAILED, f"shapes {shapes[0]}, expected {shapes[1]}"
    if not all(torch.equal(a, b) for a, b in zip(found, again, strict=True)):
        return FAILED, "not the same numbers twice"
    if exact is plain:
        wrong = sum(int((a.cpu() != b.cpu()).sum()) for a, b in zip(found, plain, strict=True))
        return (FAILED, f"{wrong:,} numbers differ") if wrong else (PASSED, "equal")
    error, torchs = _error(found, exact), _error(plain, exact)
    allowed = 2 * torchs + SLACK + ROUNDING * trial.additions**0.5
    # not (error > allowed): an error of NaN fails
    return (PASSED if error <= allowed else FAILED), f"error {error:.1e}, torch's {torchs:.1e}"


def _listed(found: Tensors) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def _double(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest error over the largest exact number."""
    errors = [
        float((a.double().to(b.device) - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, exact, strict=True)
    ]
    return max(errors, key=lambda error: (error != error, error))  # NaN is the largest
