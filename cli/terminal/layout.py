"""Text for stdout: whole where a program reads it, cut to the width of a terminal where one does.

On a terminal no row of a table is longer than a line: names are abbreviated with ``…``, then
columns are left out, and of many rows those in the middle; what is cut is named below the table.
Through a pipe and in the other formats everything is there.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from circuitcore.errors import one_line as plain

SHORT = 8  # cells of a name, at least
MOST = 200  # rows that a terminal is shown of one table
GAP = 2  # blanks between columns
ENDS = ("layer",)  # headings of names that differ in their ends
DUMB = ("", "dumb", "unknown")  # terminals that take no control sequences


def emit(text: str) -> None:
    """Write text to stdout; the characters a terminal cannot show become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def controls(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be drawn over."""
    return stream.isatty() and os.environ.get("TERM", "") not in DUMB


def colours(stream: TextIO) -> bool:
    """Whether colours and bold letters go to a stream: a terminal's, unless ``NO_COLOR`` is set."""
    return controls(stream) and not os.environ.get("NO_COLOR")


def room(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that a stream (stdout) is; None where it is none: nothing is cut."""
    stream = stream or sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def folded(line: str, indent: int = 2, stream: TextIO | None = None) -> str:
    """A sentence over as many lines as a terminal needs, one where the stream is none."""
    width = room(stream)
    if width is None or len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table as text, the first ``left`` columns flush left and the others flush right.

    The first ``left`` columns are what may be abbreviated.
    """
    width, said = room(), []
    body = [[plain(value) for value in row] for row in rows]
    if width is not None and len(body) > MOST:
        said.append(f"{len(body) - MOST:,} rows in the middle are left out")
        between = [_drawn("…", ".."), *[""] * (len(headings) - 1)]
        body = [*body[: MOST // 2], between, *body[-(MOST // 2) :]]
    columns = [list(map(plain, column)) for column in zip(headings, *body, strict=True)]
    widths = [max(map(cells, column)) for column in columns]
    if width is not None:
        widths = _fitted(widths, left, width)
        if gone := list(dict.fromkeys(headings[len(widths) :])):
            said.append(f"columns left out for want of room: {', '.join(gone)}")
        columns = [
            [shortened(value, wide, end=heading in ENDS) for value in column]
            for heading, column, wide in zip(headings, columns, widths, strict=False)
        ]
    lines = [_row(row, widths, left) for row in zip(*columns, strict=True)]
    if colours(sys.stdout):
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    lines.insert(1, " " + _drawn("─", "-") * (sum(widths) + GAP * (len(widths) - 1)))
    if said:
        lines.append(folded("; ".join([*said, "--format csv or a pipe has them"])))
    return "\n".join(lines) + "\n"


def _row(values: Sequence[str], widths: Sequence[int], left: int) -> str:
    """One line of a table."""
    shown = [
        _padded(value, width, place >= left)
        for place, (value, width) in enumerate(zip(values, widths, strict=True))
    ]
    return f" {(' ' * GAP).join(shown)}".rstrip()


def _fitted(widths: Sequence[int], left: int, width: int) -> list[int]:
    """Widths of the columns that a line of ``width`` has room for, the first ones shortened."""
    for count in range(len(widths), 0, -1):
        some = list(widths[:count])
        over = sum(some) + GAP * (count - 1) + 1 - width
        while over > 0:
            longest = max(range(min(left, count)), key=lambda place: some[place])
            if some[longest] <= SHORT:
                break
            some[longest] -= 1
            over -= 1
        if over <= 0:
            return some
    return [max(width - 1, 1)]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal, where some letters take two and some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def shortened(text: str, width: int, *, end: bool = False) -> str:
    """A text in at most ``width`` columns, ``…`` for what is cut off; ``end``: it keeps its end."""
    if cells(text) <= width:
        return text
    mark = _drawn("…", "..")[: max(width, 0)]
    whole = text[::-1] if end else text
    kept = ""
    for letter in whole:
        if cells(kept + letter) > width - len(mark):
            break
        kept += letter
    return mark + kept[::-1] if end else kept.rstrip() + mark


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks


def _drawn(fine: str, coarse: str) -> str:
    """What a terminal's encoding has."""
    try:
        fine.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return coarse
    return fine
