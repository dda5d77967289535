"""Every option of a sweep: its name, values, default, and whether it changes the numbers.

One table, one meaning: the command line, the environment (``CIRCUITCORE_*``) and the config file
(TOML) use these names.  A flag wins over the environment, the environment over the config file,
the file over a preset, the preset over the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from circuitcore.errors import UsageError, nearest

SPARSEST_KEPT = 0.001
MOST_LEVELS = 255  # one unsigned byte a weight encodes a whole nested sweep


@dataclass(frozen=True)
class Grid:
    """Pruned fractions from 0 (always there), increasing; ``note`` says what was put in order."""

    fractions: tuple[float, ...]
    note: str = ""


def parse_levels(text: str) -> Grid:
    """Read ``32`` (a count, geometric in the kept fraction from 1 to 0.001), ``linear:51`` (evenly
    from 0 to 1) or ``0,0.5,0.9`` (pruned fractions).

    Raises ValueError where the text is none of these, a fraction lies outside [0, 1], or there are
    more than 255 levels.
    """
    text = text.strip()
    if text.startswith("linear:"):
        count = _count(text.removeprefix("linear:"), text)
        return Grid(tuple(i / (count - 1) for i in range(count)))
    if "," not in text and "." not in text:
        count = _count(text, text)
        last = count - 1
        return Grid(tuple(1 - SPARSEST_KEPT ** (i / last) for i in range(count)))
    try:
        given = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(
            f"levels {text!r}: a count, linear:COUNT, or fractions 0,0.5,0.9"
        ) from None
    outside = [g for g in given if not 0 <= g <= 1]
    if outside:
        raise ValueError(f"levels {text!r}: pruned fractions lie in [0, 1], not {outside[0]}")
    ordered = tuple(sorted({0.0, *given}))
    if len(ordered) > MOST_LEVELS:
        raise ValueError(f"levels: {len(ordered)} of them, at most {MOST_LEVELS}")
    if len(ordered) < 2:
        raise ValueError(f"levels {text!r}: at least one level besides the unpruned one")
    notes = []
    if given != sorted(given):
        notes.append("sorted")
    if len(set(given)) < len(given):
        notes.append("repeated ones dropped")
    if 0.0 not in given:
        notes.append("the unpruned level added")
    return Grid(ordered, ", ".join(notes))


def _count(text: str, whole: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ValueError(
            f"levels {whole!r}: a count, linear:COUNT, or fractions 0,0.5,0.9"
        ) from None
    if not 2 <= count <= MOST_LEVELS:
        raise ValueError(f"levels {whole!r}: from 2 to {MOST_LEVELS} levels")
    return count


Whole = int | Literal["none"] | None


class Options(BaseModel):
    """The options of one run.  Frozen; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    # what is swept
    model: str = "bundled"
    arch: str | None = None
    images: str = "bundled"
    categories: Path | None = None
    scoring_images: int = Field(4, ge=1)
    extraction_images: int = Field(20, ge=1)
    heldout_images: int = Field(30, ge=1)
    resize: Whole = None
    crop: Whole = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    # the method
    magnitude: Literal["position", "image", "set", "signed"] = "position"
    granularity: Literal["weight", "kernel", "filter"] = "weight"
    criterion: Literal["actgrad", "snip", "weight-magnitude", "random"] = "actgrad"
    normalise: Literal["paper", "minmax", "none", "l1"] = "paper"
    spatial: Literal["sum", "mean"] = "sum"
    ties: Literal["weight", "snap"] = "weight"
    levels: str = "32"
    fc_levels: str | None = None
    conv_levels: str | None = None
    stop: Literal["first-crossing", "sparsest-above"] = "first-crossing"
    threshold: float = Field(0.9, gt=0)
    fc_threshold: float | None = Field(None, gt=0)
    conv_threshold: float | None = Field(None, gt=0)
    reference: Literal["unpruned-biased", "unpruned", "peak"] = "unpruned-biased"
    false_alarm_norm: Literal["target", "other", "predicted"] = "target"
    bias: Literal["exact", "none", "sgd"] = "exact"
    seed: int = Field(0, ge=0)

    # the engine
    screen: Literal["auto", "off", "on"] = "auto"
    device: str = "auto"
    gpu: int | None = Field(None, ge=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    impl: Literal["auto", "triton", "torch", "numba"] = "auto"
    memory: int | None = Field(None, description="bytes; suffixes K, M, G are accepted")
    no_fallback: bool = False
    workers: int = Field(1, ge=1)
    max_bad: int = Field(0, ge=0)
    allow_pickle: bool = False

    # where it goes
    out: Path | None = None
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    quiet: bool = False

    @field_validator("levels", "fc_levels", "conv_levels", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        if value is None:
            return None
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        parse_levels(text)
        return text

    @field_validator("resize", "crop", mode="after")
    @classmethod
    def _pixels(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("a whole number of pixels, at least 1, or 'none'")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        if value is not None and not isinstance(value, list | tuple):
            value = [value]
        if value is not None and len(value) not in (1, 3):
            raise ValueError("one number, or three for red, green and blue")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip().upper().removesuffix("B").removesuffix("I")
        factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1:], 1)
        number = text[:-1] if factor > 1 else text
        try:
            size = int(float(number) * factor)
        except ValueError:
            raise ValueError(f"not a size: {value!r}; write for example 8G or 500M") from None
        return size

    @field_validator("memory", mode="after")
    @classmethod
    def _positive_memory(cls, value: Any) -> Any:
        if value is not None and value < 2**20:
            raise ValueError("at least 1M")
        return value

    @model_validator(mode="after")
    def _together(self) -> Options:
        if self.reference == "peak" and self.stop != "sparsest-above":
            raise ValueError("reference 'peak' needs --stop sparsest-above: the peak is known last")
        if self.reference == "peak" and self.screen == "on":
            raise ValueError("reference 'peak' needs every level: use --screen off")
        if self.gpu is not None and self.device not in ("auto", f"cuda:{self.gpu}"):
            raise ValueError(f"--gpu {self.gpu} and --device {self.device} disagree: give one")
        if self.std is not None and any(s <= 0 for s in self.std):
            raise ValueError("--std: standard deviations are positive")
        return self

    def grid(self, stage: str) -> tuple[float, ...]:
        """Pruned fractions of one stage (``fc`` or ``conv``), from 0, increasing."""
        own = self.fc_levels if stage == "fc" else self.conv_levels
        return parse_levels(own or self.levels).fractions

    def stage_threshold(self, stage: str) -> float:
        """The stage's threshold, a fraction of the reference CSA."""
        own = self.fc_threshold if stage == "fc" else self.conv_threshold
        return self.threshold if own is None else own

    def method(self) -> dict[str, Any]:
        """What changes the numbers, in canonical form: part of every unit's key."""
        names = ["magnitude", "granularity", "criterion", "normalise", "spatial", "ties"]
        names += ["stop", "reference", "false_alarm_norm", "bias", "seed"]
        names += ["scoring_images", "extraction_images", "heldout_images"]
        record: dict[str, Any] = {name: getattr(self, name) for name in names}
        for stage in ("fc", "conv"):
            record[f"{stage}_levels"] = list(self.grid(stage))
            record[f"{stage}_threshold"] = self.stage_threshold(stage)
        return record


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"levels": "linear:51"},
    "paper-literal": {
        "levels": "linear:51",
        "false_alarm_norm": "other",
        "reference": "unpruned",
    },
    "vss": {
        "bias": "none",
        "false_alarm_norm": "other",
        "threshold": 0.85,
        "reference": "unpruned",
        "stop": "sparsest-above",
    },
    "hamblin": {
        "granularity": "kernel",
        "magnitude": "position",
        "spatial": "mean",
        "levels": "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.98,0.99,0.995,0.998,0.999",
    },
}
NOT_OPTIONS = {"CIRCUITCORE_REQUIRE_GPU", "CIRCUITCORE_CACHE"}  # of tests and tuning tables


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
    known = [*Options.model_fields, "preset"]

    from_environment: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith("CIRCUITCORE_") or variable in NOT_OPTIONS:
            continue
        name = variable.removeprefix("CIRCUITCORE_").lower()
        if name == "config":
            config = config or Path(value)
        elif name in known:
            from_environment[name] = value
        else:
            problems.append(f"environment {variable}: unknown option{nearest(name, known)}")

    from_file = _read_config(config, known, problems) if config else {}
    given = dict(flags)
    named = preset or from_environment.pop("preset", None) or from_file.pop("preset", None)
    from_file.pop("preset", None)
    if named is not None and named not in PRESETS:
        near = nearest(str(named), PRESETS)
        problems.append(f"preset {named!r}: one of {', '.join(PRESETS)}{near}")
        named = None
    merged = {**(PRESETS[named] if named else {}), **from_file, **from_environment, **given}
    try:
        options = Options(**merged)
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            source = _source(name, given, from_environment, from_file, config, named)
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if not name else f" (got {merged.get(name)!r})"
            line = f"{source}{message}{shown}"
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
    if not name:
        return ""
    if name in flags:
        return f"--{name.replace('_', '-')}: "
    if name in environment:
        return f"environment CIRCUITCORE_{name.upper()}: "
    if name in file:
        return f"{config}: {name}: "
    return f"preset {preset}: {name}: " if preset else f"{name}: "


def _read_config(path: Path, known: list[str], problems: list[str]) -> dict[str, Any]:
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
        if name in known:
            kept[name] = value
        else:
            problems.append(f"{path}: unknown key {key!r}{nearest(name, known)}")
    return kept


def as_toml(options: Options) -> str:
    """The options as a config file that gives them back; unset ones are left out."""
    lines = []
    for name, value in options.model_dump(mode="json").items():
        if value is None:
            continue
        if isinstance(value, bool):
            shown = "true" if value else "false"
        elif isinstance(value, int | float):
            shown = repr(value)
        elif isinstance(value, list):
            shown = "[" + ", ".join(repr(float(v)) for v in value) + "]"
        else:
            shown = '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        lines.append(f"{name} = {shown}")
    return "\n".join(lines) + "\n"
