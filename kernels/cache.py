"""What is measured of a machine and kept for later processes: JSON files in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def folder() -> Path:
    """``CIRCUITCORE_CACHE``, else ``circuitcore`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CIRCUITCORE_CACHE") or Path(home) / "circuitcore")


def read(name: str) -> dict[str, Any]:
    """The content of a file; empty where it is missing, unreadable or no table."""
    try:
        found = json.loads((folder() / name).read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}


def write(name: str, content: dict[str, Any]) -> None:
    """Put a file in place of the one before, whole or not at all.  Raises OSError."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    os.replace(temporary, path)
