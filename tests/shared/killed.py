"""Kill sweeps at random instants and go on with them, in forks of one process.

    python killed.py IMAGES FOLDER KILLS SEED

A fork has imported everything, so most instants fall into the work itself.  Prints how many kills
there were, how many runs came to their end, and in what state the folder was found.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from command import masks
from sweep_tiny import CATEGORIES, tiny_model

import circuitcore
import circuitcore.jobs.verifying
import circuitcore.kernels.overlap.cpu
import circuitcore.report.page  # noqa: F401 - here, so that forks need not
from circuitcore.runs.intact import damaged


def sweep(images, out, options):
    return circuitcore.sweep(
        tiny_model(images), images, categories=list(CATEGORIES), out=out, **options
    )


def forked(work) -> int:
    """A child that does ``work()`` and ends with what it says is wrong, 0 if nothing."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            wrong = work()
        if isinstance(wrong, list) and wrong:
            print(wrong, file=sys.stderr)
        code = int(bool(wrong))
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(images: Path, folder: Path, kills: int, seed: int, options: dict) -> None:
    """Raises AssertionError where anything is torn, or a result differs from an undisturbed one."""
    instants, found, whole, number = random.Random(seed), Counter(), folder / "whole", 0
    began = time.monotonic()
    assert ended(forked(lambda: sweep(images, whole, options).verify(sample=0))) == 0
    takes = time.monotonic() - began
    wanted = masks(whole)
    while found["killed"] < kills:
        run = folder / str(number)
        number += 1
        while True:
            child = forked(lambda run=run: sweep(images, run, options) and None)
            time.sleep(
                instants.uniform(0, takes * instants.choice((0.4, 1)))
            )  # often before it reports
            os.kill(child, signal.SIGKILL)
            code = ended(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            found["killed"] += 1
            found[f"killed with {len(list(run.glob('units/*/*.safetensors')))} done"] += 1
            assert not run.exists() or damaged(run) == {}
            if found["killed"] >= kills:
                assert ended(forked(lambda run=run: sweep(images, run, options) and None)) == 0
                break
        assert ended(forked(lambda run=run: circuitcore.open_run(run).verify(sample=0))) == 0
        left = [str(p) for p in run.rglob("*.tmp")]
        assert not left, left
        now = masks(run)
        assert now.keys() == wanted.keys()
        assert all(now[name].tobytes() == bits.tobytes() for name, bits in wanted.items())
        found["finished"] += 1
        shutil.rmtree(run)
    print(json.dumps(found))


if __name__ == "__main__":
    images, folder, kills, seed, options = sys.argv[1:]
    main(Path(images), Path(folder), int(kills), int(seed), json.loads(options))
