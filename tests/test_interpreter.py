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

ROOT = Path(__file__).parent.parent
CASES = sorted((ROOT / "tests" / "interpreter").glob("*_cases.py"))


@pytest.mark.slow
def test_interpreted_kernels_are_right(tmp_path):
    report = tmp_path / "report.xml"
    # -P keeps the root, whose circuitcore folder has no kernels, off the import path
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "tests/interpreter",
        "-o",
        "python_files=*_cases.py",
        "-q",
        "--tb=short",
    ]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    child = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    passed = Counter(
        case.get("classname", "").rpartition(".")[2]
        for case in ElementTree.parse(report).iter("testcase")
        if not len(case)  # no failure, error or skip inside
    )
    assert {path.stem for path in CASES} == set(passed), passed
