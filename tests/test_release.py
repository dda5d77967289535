"""`.ci/release`, which the workflows run: wheel and sdist are built, checked, and swept with."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def release(folder: Path, **environment: str) -> str:
    """What the script said; both files lie in ``folder``."""
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "release"), str(folder)], capture_output=True, text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment}, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def checked(folder: Path, said: str) -> None:
    wheel, sdist = sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert said.count("PASSED") == 2 and "intact: 2 circuits" in said and "circuitcore 0." in said
    names = zipfile.ZipFile(wheel).namelist()
    for held in ("py.typed", "kernels/aot/budget.json", "cli/main.py", "schemas/sweep.json"):
        assert f"circuitcore/{held}" in names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"kernels", "cli", "tests", "bench"}
    with tarfile.open(sdist) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "kernels/spans.py"} <= inside


@pytest.mark.slow
def test_a_release(tmp_path):
    """As the workflow runs it, all that the wheel needs installed from nothing: minutes."""
    checked(tmp_path, release(tmp_path))


def test_a_release_on_the_packages_that_are_here(tmp_path):
    """The same commands; what would be installed is borrowed, and no kernel is compiled."""
    said = release(
        tmp_path, RELEASE_TOOLS=sys.executable, RELEASE_BORROW="1",
        RELEASE_SWEEP="--impl torch --extraction-images 4 --heldout-images 4",
    )  # fmt: skip
    checked(tmp_path, said)
