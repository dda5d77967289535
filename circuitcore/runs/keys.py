"""The names of unit files: hashes of all that changes their numbers.  Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from typing import Any


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
