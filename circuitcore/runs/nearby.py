"""Which run may have been meant by a path that is none."""

from __future__ import annotations

import difflib
from pathlib import Path

MANIFEST = "manifest.json"
HOME = Path("runs")  # where sweeps go that are given no folder
NAMED = 3  # runs that a message names


def runs_in(folder: Path) -> list[Path]:
    """The run folders directly in a folder; none where it cannot be read."""
    try:
        return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    except OSError:
        return []


def meant(folder: Path) -> str:
    """A phrase naming the runs in ``folder``, or those of a like name beside it or in ``runs``."""
    if inside := runs_in(folder):
        more = " ..." * (len(inside) > NAMED)
        return f"; there are runs in it: {', '.join(map(str, inside[:NAMED]))}{more}"
    beside = {path.name: path for place in (folder.parent, HOME) for path in runs_in(place)}
    close = difflib.get_close_matches(folder.name, list(beside), n=NAMED, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(f"'{beside[name]}'" for name in close) + "?"
    return "; 'circuitcore ls runs' lists those in runs/"
