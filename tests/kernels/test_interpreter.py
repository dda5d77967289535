"""Every kernel's program, run without a GPU by Triton's interpreter.

``TRITON_INTERPRET=1`` is read when a kernel is decorated, so these run in a process of their own.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton exists on Linux only")

ROOT = Path(__file__).parents[2]
CASES = sorted((ROOT / "tests" / "interpreter").glob("*_cases.py"))


def test_interpreted_kernels_are_right(tmp_path):
    """Two processes of one thread each: the interpreter uses no more."""
    # -P keeps the root, whose circuitcore folder has no kernels, off the import path
    pytest_command = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    children = {
        tmp_path / f"{half}.xml": subprocess.Popen(
            [*pytest_command, "-p", "no:cacheprovider", f"--junitxml={tmp_path / f'{half}.xml'}",
             *CASES[half::2]],
            cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for half in (0, 1)
    }  # fmt: skip
    passed = Counter()
    for report, child in children.items():
        said, _ = child.communicate(timeout=900)
        assert child.returncode == 0, said[-6000:]
        passed.update(
            case.get("classname", "").rpartition(".")[2]
            for case in ElementTree.parse(report).iter("testcase")
            if not len(case)  # no failure, error or skip inside
        )
    assert {path.stem for path in CASES} == set(passed), passed
