"""How far the ceiling of extraction images, from counts alone, lies above that of drawing them.

``python bench/e2e/extraction_images.py RUN [DRAWS]``: of a run with matched biases, every level run
on every image, and on each draw every bias fitted anew; beside it `Run.choices`, which takes hits
as nested and biases as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).parents[2] / "tests" / "shared"))

import numpy as np  # noqa: E402
from redrawn import redrawn  # noqa: E402

import circuitcore  # noqa: E402
from circuitcore.analysis.resampling.choice import mean_overlap  # noqa: E402


def main() -> None:
    """Print a line a category, then the means."""
    folder, draws = Path(sys.argv[1]), int((*sys.argv[2:], 150)[0])
    counted = {r["category"]: r for r in circuitcore.open_run(folder).choices() if not r["stage"]}
    found = []
    for name, kept in redrawn(folder, draws).items():
        found.append((mean_overlap(kept), counted[name]["extraction_ceiling"]))
        print(f"{name:12} drawn {found[-1][0]:.3f}  from counts {found[-1][1]:.3f}")
    drawn, ours = np.mean(found, axis=0)
    print(f"{'mean':12} drawn {drawn:.3f}  from counts {ours:.3f}")


if __name__ == "__main__":
    main()
