"""The command line run inside the test's own process, where the test is not about processes."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def call(*arguments: object, code: int = 0) -> Said:
    """`circuitcore ARGUMENT...`, from arguments to exit code, which must be ``code``."""
    from circuitcore.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run([str(argument) for argument in arguments])
    said = Said(out.getvalue(), err.getvalue())
    assert found == code, said.stderr[-3000:]
    assert code in (0, 1) or "Traceback" not in said.stderr
    return said


def masks(folder: Path) -> dict[str, np.ndarray]:
    """The bit-packed masks of a run by "category/layer"."""
    from circuitcore.runs.circuitfile import packed_masks, read_record
    from circuitcore.runs.folder import open_run

    return {
        f"{read_record(path)[1].category}/{layer}": bits
        for path in open_run(folder).units().values()
        for layer, bits in packed_masks(path).items()
    }
