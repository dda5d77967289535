"""CPU kernels are compiled once on a machine: a second process finds all of them on disk."""

import json
import os
import subprocess
import sys

SWEEP = """
import json, sys
from numba.core import event

class Compiled(event.Listener):
    names = []
    def on_start(self, happened):
        self.names.append(happened.data["dispatcher"].py_func.__name__)
    def on_end(self, happened):
        pass

event.register("numba:compile", Compiled())
from pathlib import Path
from circuitcore.engine.footprint import must_compile
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.jobs.job import sweep
from circuitcore.machine.device import machine

before = must_compile(machine(Options(device="cpu")))
options = Options(levels="0,0.5,0.9,0.99,0.995", out=Path(sys.argv[1]), device="cpu")
sweep(options, ["Trouser"], Silent())
print(json.dumps({"before": before, "compiled": Compiled.names}))
"""
ASK = """
from circuitcore.engine.footprint import must_compile
from circuitcore.machine.device import machine
from circuitcore.options import Options

print([must_compile(machine(Options(impl=impl, device="cpu"))) for impl in ("auto", "torch")])
"""


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_second_process_compiles_nothing(tmp_path):
    run(SWEEP, tmp_path / "first")
    second = json.loads(run(SWEEP, tmp_path / "second"))
    assert second == {"before": False, "compiled": []}


def test_an_empty_cache_is_seen_before_anything_is_compiled(tmp_path):
    assert run(ASK, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "[True, False]"
