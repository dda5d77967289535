"""The races of a benchmark run as one Markdown table, and as JSON to keep as a baseline.

``python bench/table.py bench/baselines/*.json`` prints the table of runs kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One race: median seconds of every contender, ours by name, and what was noted."""

    name: str
    device: str
    ours: str
    seconds: dict[str, float]
    rounds: dict[str, int]
    note: dict[str, str]

    def ratios(self) -> dict[str, float]:
        """How many times faster ours is than each of the others."""
        own = self.seconds[self.ours]
        return {name: s / own for name, s in self.seconds.items() if name != self.ours}


def markdown(rows: Sequence[Row]) -> str:
    """One line a race: ours in seconds, every contender as a ratio to it."""
    lines = ["| benchmark | this | against (times slower than this) |", "|---|---|---|"]
    for row in rows:
        others = ", ".join(f"{name} {ratio:.1f} ×" for name, ratio in row.ratios().items())
        name = row.name.removeprefix("test_").replace("_", " ")
        lines.append(f"| {name} | {row.ours}: {row.seconds[row.ours]:.3g} s | {others} |")
    devices = " and ".join(sorted({row.device for row in rows}))
    return "\n".join([*lines, "", f"Medians, interleaved, cold caches, on {devices}."])


def save(rows: Sequence[Row], path: Path) -> None:
    """Keep the rows of a run; those of an earlier one with the same name and device give way."""
    kept = {(r.name, r.device): r for r in (load(path) if path.exists() else [])}
    kept |= {(r.name, r.device): r for r in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in kept.values()], indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def load(path: Path) -> list[Row]:
    """The rows of a run kept by `save`."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    print(markdown([row for path in sys.argv[1:] for row in load(Path(path))]))
