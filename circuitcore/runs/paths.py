"""Where runs and their unit files are, and which run a path that is none may have meant.

A unit file is named by a hash of all that changes its numbers.  Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
HOME = Path("runs")  # where sweeps go that are given no folder
NAMED = 3  # runs that a message names


def canonical(value: Any) -> bytes:
    """JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def unit_key(config: dict[str, Any], unit: int) -> str:
    """sha256 naming the file of output unit ``unit`` under a configuration."""
    return hashlib.sha256(canonical({**config, "unit": unit})).hexdigest()


def unit_file(config: dict[str, Any], unit: int) -> str:
    """Where in a run folder the file of output unit ``unit`` is."""
    key = unit_key(config, unit)
    return f"units/{key[:2]}/{key}.safetensors"


def plain_name(category: str) -> str:
    """A category's name as part of the name of a file, on any system."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", category)


def file_stem(unit: int, category: str) -> str:
    """The name, without an ending, of a file of one category: no two have the same."""
    return f"{unit:04d}-{plain_name(category)}"


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
