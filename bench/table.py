"""The races of a benchmark run as one Markdown table.

``python bench/table.py bench/baselines/*.json`` prints the table of runs kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from circuitcore.jobs.profiling.benchmarks import Row, read_rows


def markdown(rows: Sequence[Row]) -> str:
    """One line a race: ours in seconds, every contender as a ratio to it."""
    lines = [
        "| benchmark | this | against (times slower than this) | of the roofline | FPE |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        others = ", ".join(f"{name} {ratio:.1f} ×" for name, ratio in row.ratios().items())
        name, seconds = row.name.removeprefix("test_").replace("_", " "), row.times[row.ours].median
        roof, fpe = row.about.get("roofline"), row.about.get("fpe")
        cells = [name, f"{row.ours}: {seconds:.3g} s", others]
        cells += ["" if roof is None else f"{roof:.0%}", "" if fpe is None else f"{fpe:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    devices = " and ".join(sorted({row.device for row in rows}))
    return "\n".join([*lines, "", f"Medians, interleaved, cold caches, on {devices}."])


if __name__ == "__main__":
    print(markdown([row for path in sys.argv[1:] for row in read_rows(Path(path))]))
