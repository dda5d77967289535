"""How values of options are written: levels, channels, sizes.

What reads or checks a value raises ValueError where it does not fit.
"""

import functools
import math
from dataclasses import Field, dataclass
from typing import Any

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
    """What is given, but no NaN."""
    try:
        nan = value != value or (isinstance(value, str) and math.isnan(float(value)))
    except ValueError:
        return value  # what it is instead is told with its type
    if nan:
        raise ValueError("a number is needed")
    return value


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
        raise ValueError("at least 1M")


def converted(field: Field[Any], value: Any) -> Any:
    """The value in its field's type.  Raises ValueError with one message a fault."""
    from pydantic import ValidationError  # slow to import, and not for --help

    read, check = field.metadata["read"], field.metadata["check"]
    if read and value is not None:
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
