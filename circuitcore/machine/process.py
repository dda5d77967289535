"""What a process of circuitcore's own sets for itself; a library call sets none of it.

Nothing heavy is imported: the command line does this before any verb.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from types import FrameType

from circuitcore.machine.room import cores

INTERRUPTED, TERMINATED = 130, 143
GRACE_SECONDS = 8  # until a signal whose exception was lost ends the process all the same
MAPPED = 4 << 20  # bytes from which an allocation goes back to the system as soon as it is freed
_came: list[int] = []  # exit codes of the signals that were answered
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def settle() -> None:
    """Answer signals, keep to the cores there are, give freed memory back, drop a needless warning.

    Threads that wait for one another sleep rather than spin: where other work shares the cores,
    spinning made a sweep five times slower.  Read when torch is imported, so before any verb.
    """
    open_streams()
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _interrupted)
    if hasattr(signal, "SIGUSR2"):  # what schedulers warn with
        signal.signal(signal.SIGUSR2, _terminated)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (own := cores()) < (os.cpu_count() or 1):  # libraries know of sets of cores, not of quotas
        os.environ.setdefault("OMP_NUM_THREADS", str(own))
    return_large_blocks()
    # `pixels.decode` refuses by a limit of its own; a filter there would not hold in its threads
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit")


def stop_soon() -> None:
    """In a scheduler's job: end within `GRACE_SECONDS` of SIGTERM, or of its own answer to SIGUSR2.

    That answer, which has the job queued again, is kept.  Nothing where signals are not this
    thread's business.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminated)
    own = signal.getsignal(signal.SIGUSR2) if hasattr(signal, "SIGUSR2") else None
    if not callable(own):
        return

    def answer(number: int, frame: FrameType | None) -> None:
        try:
            own(number, frame)
        finally:
            _insist(TERMINATED)

    signal.signal(signal.SIGUSR2, answer)


def open_streams() -> None:
    """Where standard streams are closed, open them on nothing.

    Else the next file that is opened would get their number, and be written what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good


def say(message: str) -> None:
    """Print to stderr; where it is full or gone, nothing: the exit code still tells."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # else Python itself fails on it at exit


def settled(code: int) -> int:
    """The process ends by itself with ``code``: no signal needs to insist any more.

    Returns the code to end with: a signal's own where its exception was lost and the work went on.
    """
    signal.alarm(0)
    return code or next(iter(_came), 0)


def return_large_blocks() -> None:
    """Have the C library return large blocks to the system when they are freed.

    glibc would raise its threshold to 32 MB and keep what is smaller: with activations of every
    size that comes to hundreds of megabytes.  Elsewhere this does nothing.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
        libc.mallopt(M_TRIM_THRESHOLD, 4 * MAPPED)
    except (OSError, TypeError, AttributeError):
        return


def _terminated(number: int, frame: FrameType | None) -> None:
    _came.append(TERMINATED)
    say("terminated; the same command goes on where it stopped")
    _insist(TERMINATED)
    raise SystemExit(TERMINATED)


def _interrupted(number: int, frame: FrameType | None) -> None:
    _came.append(INTERRUPTED)
    _insist(INTERRUPTED)
    raise KeyboardInterrupt


def _insist(code: int) -> None:
    """End the process if an exception does not: raised inside a callback of C code it is lost.

    What is committed is whole at any instant.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
    signal.alarm(GRACE_SECONDS)
