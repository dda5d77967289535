"""What is measured of a machine and kept for later processes: JSON files in one folder."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any


def folder() -> Path:
    """``CIRCUITCORE_CACHE``, else ``circuitcore`` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CIRCUITCORE_CACHE") or Path(home) / "circuitcore")


def private_folder(name: str) -> Path:
    """A folder in the temporary one that nobody else can write to, for what is run when it is read.

    The same for every process of this user; where something else has taken its name, a new one.
    """
    owner = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"{name}-{owner}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o077:
            return path
    except OSError:  # a file of that name, or no permission
        pass
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


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
