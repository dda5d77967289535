"""How values of options are written: levels, channels, sizes.

What reads or checks a value raises ValueError where it does not fit.
"""

import functools
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import Field, dataclass
from typing import Any, Literal, get_args

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


def as_levels(value: Any) -> str:
    """Levels as text, from text, a count or a list of fractions."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    parse_levels(text)
    return text


def check_pixels(value: int | str) -> None:
    """Refuse fewer pixels than one."""
    if isinstance(value, int) and value < 1:
        raise ValueError("a whole number of pixels, at least 1, or 'none'")


@dataclass(frozen=True)
class Group:
    """A stage as it is asked for: its name, and names of layers or globs of them."""

    name: str
    layers: tuple[str, ...]


def parse_stages(text: str) -> tuple[Group, ...]:
    """Read ``fc=classifier.*;conv=features.0,features.3``: stages in the order they are pruned in.

    Raises ValueError where a stage has no name, no layer, or another's name.
    """
    groups: list[Group] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, _, listed = (each.strip() for each in part.partition("="))
        layers = tuple(filter(None, map(str.strip, listed.split(","))))
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not layers:
            raise ValueError(f"stage {part!r}: NAME=LAYER,LAYER, such as fc=classifier.*")
        if name in {group.name for group in groups}:
            raise ValueError(f"stage {name!r} is named twice")
        groups.append(Group(name, layers))
    if not groups:
        raise ValueError(
            "no stage: NAME=LAYERS;NAME=LAYERS, such as fc=classifier.*;conv=features.*"
        )
    return tuple(groups)


def as_stages(value: Any) -> str:
    """Stages as text, from text or a mapping of names to layers."""
    if isinstance(value, dict):
        listed = {k: [v] if isinstance(v, str) else v for k, v in value.items()}
        value = ";".join(f"{name}={','.join(layers)}" for name, layers in listed.items())
    parse_stages(str(value))
    return str(value)


def as_names(value: Any) -> Any:
    """Several names, from text with commas or a list of such."""
    parts = [value] if isinstance(value, str) else list(value)
    return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())


Member = Literal["actgrad", "snip", "weight-magnitude", "random", "ig", "lrp"]
MEMBERS: tuple[str, ...] = get_args(Member)


def as_criteria(value: Any) -> str:
    """Criteria of an ensemble as text, from text or a list, in the order of --criterion's help."""
    names = as_names(value)
    unknown = [name for name in names if name not in MEMBERS]
    if unknown:
        raise ValueError(f"no criterion {unknown[0]!r}: {', '.join(MEMBERS)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("two different criteria or more, such as actgrad,ig")
    return ",".join(name for name in MEMBERS if name in names)


def as_channels(value: Any) -> Any:
    """One value or three, from text with commas, a number or a list."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        value = [value]
    if len(value) not in (1, 3):
        raise ValueError("one number, or three for red, green and blue")
    return value


def as_number(value: Any) -> Any:
    """What is given, but no NaN, and no percentage where a fraction is meant."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return value  # what it is instead is told with its type
    if math.isnan(number):
        raise ValueError("a number is needed")
    if text.endswith("%"):
        raise ValueError(f"a fraction is needed: {number:g} % is {number / 100:g}")
    if 2 <= number <= 100:
        raise ValueError(f"should be less than or equal to 1: {number:g} % is {number / 100:g}")
    return value


MOST_UNITS = 10**6


@dataclass(frozen=True)
class Targets:
    """Targets as asked for: ``units`` of a layer, or ``files`` of directions over its channels."""

    layer: str
    units: tuple[int, ...] = ()
    files: tuple[str, ...] = ()


def as_targets(value: Any) -> Any:
    """One target or several, from text or a list."""
    return (value,) if isinstance(value, str) else tuple(value)


def read_targets(texts: Sequence[str]) -> Targets | None:
    """Read ``LAYER:3``, ``LAYER:0-9``, ``LAYER:0,3,7-9`` and ``LAYER:FILE``; None for none.

    Raises ValueError where one is none of these, or they are not all units, or all directions, of
    one layer.
    """
    layers: dict[str, None] = {}
    units: dict[int, None] = {}
    files: dict[str, None] = {}
    for text in texts:
        layer, colon, which = text.partition(":")
        if not (layer and colon and which):
            raise ValueError(f"{text!r}: LAYER:UNIT, LAYER:FIRST-LAST or LAYER:FILE")
        layers[layer] = None
        if which.endswith((".npy", ".safetensors")):
            files[which] = None
        else:
            units |= dict.fromkeys(_numbers(which, text))
    if len(layers) > 1:
        raise ValueError(
            f"{', '.join(layers)}: one layer a run, at which the network is cut; sweep the others "
            "into runs of their own"
        )
    if units and files:
        raise ValueError("units or directions, not both: other weights can reach them")
    return Targets(next(iter(layers)), tuple(units), tuple(files)) if layers else None


def _numbers(which: str, text: str) -> list[int]:
    found: list[int] = []
    for part in which.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r}: a unit's number, 0-9, 0,3,7, or a .npy or .safetensors")
        span = range(int(first), int(last if dash else first) + 1)
        if span.stop - span.start > MOST_UNITS:  # `len` itself gives up on large ones
            raise ValueError(f"{text!r}: {span.stop - span.start:,} units, more than any layer has")
        if not span:
            raise ValueError(f"{text!r}: from {last} to {first}, the smaller first")
        found += span
    return found


def as_size(value: Any) -> Any:
    """Bytes from text such as ``8G`` or ``500MiB``; what is no text stays."""
    if not isinstance(value, str):
        return value
    text = value.strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise ValueError(f"not a size: {value!r}; write for example 8G or 500M") from None


def check_memory(value: int) -> None:
    """Refuse less than 1M."""
    if value < 2**20:
        raise ValueError("at least 1M; a number alone is bytes: write for example 8G")


def converted(field: Field[Any], value: Any) -> Any:
    """The value in its field's type.  Raises ValueError with one message a fault."""
    from pydantic import ValidationError  # slow to import, and not for --help

    read, check = field.metadata["read"], field.metadata["check"]
    if read and value is not None:
        with suppress(TypeError, AttributeError):  # of no kind that it reads: refused below
            value = read(value)
    try:
        value = _adapter(field).validate_python(value)
    except ValidationError as error:
        raise ValueError(*(fault["msg"] for fault in error.errors())) from None
    if check and value is not None:
        check(value)
    return value


@functools.cache
def _adapter(field: Field[Any]) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    kind: Any = field.type
    return TypeAdapter(kind, config=ConfigDict(str_strip_whitespace=True))
