"""29: stopped at any instant of its beginning; standard streams that are full or closed."""

import random
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-P", "-m", "circuitcore.cli.main"]


def stopped(number: int, after: float, folder) -> tuple[int, str]:
    """Exit code and message of a sweep that gets a signal so many seconds after its start."""
    child = subprocess.Popen(
        [*COMMAND, "sweep", "Bag", "--levels", "0,0.5", "--device", "cpu", "--out", folder],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(after)
    child.send_signal(number)
    return child.wait(timeout=120), child.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_while_it_is_still_importing(number, code, tmp_path):
    """Before its own first line the signal's own end (-15, -2) is all there can be."""
    instants = random.Random(0)
    for attempt in range(40):
        found, said = stopped(number, instants.uniform(0, 3), tmp_path / str(attempt))
        assert found in (code, -number, 0), said
        assert found == -number or "Traceback" not in said, said


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("ls models >&-", 0, ""),
        ("ls models 2>&-", 0, ""),
        ("ls models >/dev/full", 4, "No space left on device"),
        ("ls nonsense 2>/dev/full", 2, ""),
        ("ls nonsense 2>&- >&- <&-", 2, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirected, code, said):
    line = " ".join(f"'{part}'" for part in COMMAND)
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirected}"], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr + done.stdout
