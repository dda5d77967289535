"""Where options come from: flags, the environment, a config file, a preset.

A flag wins over the environment (``CIRCUITCORE_*``), the environment over the config file (TOML),
the file over a preset, the preset over the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from circuitcore.errors import OptionsError, UsageError, nearest, spelled
from circuitcore.options import NAMES, PRESETS, Options, options_of

NOT_OPTIONS = {  # of tests and tuning tables
    "CIRCUITCORE_REQUIRE_GPU",
    "CIRCUITCORE_REQUIRE_CHROMIUM",
    "CIRCUITCORE_CACHE",
}
KNOWN = (*NAMES, "preset")


def resolve(
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
    preset: str | None = None,
) -> Options:
    """Merge flags, environment, config file, preset and defaults into `Options`.

    Raises UsageError listing every wrong key and value at once, with the nearest known name.
    """
    environment = os.environ if environment is None else environment
    problems: list[str] = []

    from_environment: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith("CIRCUITCORE_") or variable in NOT_OPTIONS:
            continue
        name = variable.removeprefix("CIRCUITCORE_").lower()
        if name == "config":
            config = config or Path(value)
        elif name in KNOWN:
            from_environment[name] = value
        else:
            problems.append(f"environment {variable}: unknown option{nearest(name, KNOWN)}")

    from_file = _read_config(config, problems) if config else {}
    named = preset or from_environment.pop("preset", None) or from_file.pop("preset", None)
    from_file.pop("preset", None)
    if named is not None and (not isinstance(named, str) or named not in PRESETS):
        near = nearest(str(named), PRESETS)
        problems.append(f"preset {named!r}: one of {', '.join(PRESETS)}{near}")
        named = None
    merged = {**(PRESETS[named] if named else {}), **from_file, **from_environment, **flags}
    try:
        options = options_of(merged)
    except OptionsError as error:
        for name, message, value in error.problems:
            source = _source(name, flags, from_environment, from_file, config, named)
            line = f"{source}{message} (got {value!r})" if name else message
            if line not in problems:
                problems.append(line)
    if problems:
        raise UsageError("\n".join(problems))
    return options


def _source(
    name: str,
    flags: Mapping[str, Any],
    environment: Mapping[str, Any],
    file: Mapping[str, Any],
    config: Path | None,
    preset: str | None,
) -> str:
    if name in flags:
        return f"{spelled(name)}: "
    if name in environment:
        return f"environment CIRCUITCORE_{name.upper()}: "
    if name in file:
        return f"{config}: {name}: "
    return f"preset {preset}: {name}: "


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"--config {path}: no such file")
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config {path}: not a readable TOML file: {error}")
        return {}
    kept: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in KNOWN:
            kept[name] = value
        else:
            problems.append(f"{path}: unknown key {key!r}{nearest(name, KNOWN)}")
    return kept


def as_toml(options: Options) -> str:
    """The options as a config file that gives them back; unset ones are left out."""
    return tomli_w.dumps({k: v for k, v in options.as_json().items() if v is not None})
