"""28: killed at any instant, the same command goes on to the same masks, byte for byte."""

import json
import os
import subprocess
import sys

import killed
import pytest
from sweep_tiny import OPTIONS


def run(images, folder, kills: int) -> dict[str, int]:
    """Kill so many sweeps; what was found (`tests/shared/killed.py`)."""
    folder.mkdir()
    shared = os.path.dirname(killed.__file__)
    done = subprocess.run(
        [sys.executable, "-P", killed.__file__, images, folder, str(kills), "0",
         json.dumps(OPTIONS)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": shared},
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forks")
def test_killed_eight_times_at_random_instants(tiny_images, tmp_path):
    found = run(tiny_images, tmp_path / "runs", 8)
    assert found["killed"] == 8 and found["finished"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forks")
def test_killed_two_hundred_times_at_random_instants(tiny_images, tmp_path):
    found = run(tiny_images, tmp_path / "runs", 200)
    print(found)
    assert found["killed"] == 200 and found["finished"] > 1
    assert any(found.get(f"killed with {n} done") for n in (1, 2)), "some kills between commits"
