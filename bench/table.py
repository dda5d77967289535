"""The races of a benchmark run as one Markdown table.

``python bench/table.py bench/baselines/*.json`` prints the table of runs kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from circuitcore.jobs.profiling.benchmarks import Row, read_rows


def markdown(rows: Sequence[Row]) -> str:
    """One line a race: ours in seconds, every contender as a ratio to it, what else is known."""
    more = {"roofline": "of the roofline", "fpe": "FPE"}
    known = {key: title for key, title in more.items() if any(key in r.about for r in rows)}
    headings = ["benchmark", "this", "against (times slower than this)", *known.values()]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        others = ", ".join(f"{name} {ratio:.1f} ×" for name, ratio in row.ratios().items())
        name, seconds = row.name.removeprefix("test_").replace("_", " "), row.times[row.ours].median
        cells = [name, f"{row.ours}: {seconds:.3g} s", others]
        cells += [_told(key, row.about.get(key)) for key in known]
        lines.append(f"| {' | '.join(cells)} |")
    devices = " and ".join(sorted({row.device for row in rows}))
    return "\n".join([*lines, "", f"Medians, interleaved, cold caches, on {devices}."])


def _told(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if key == "roofline" else f"{value:.3g}"


if __name__ == "__main__":
    print(markdown([row for path in sys.argv[1:] for row in read_rows(Path(path))]))
