"""An index of images: a CSV, TSV or parquet file with a row an image: path, label[, split].

A relative path counts from the index's folder and may not leave it through ``..``; an absolute one
is taken as it is.  Links are followed; only plain files are opened, and only as images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from circuitcore.errors import InputError
from circuitcore.inputs.images.listing import Listing, listing
from circuitcore.inputs.pixels import read_file

ENDINGS = (".csv", ".tsv", ".parquet")
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABELS = ("label", "class", "category", "target", "class_name")
SPLITS = ("split", "part", "set", "subset")


def read_index(file: Path, scoring: int) -> Listing:
    """The images that an index lists, each category's in its order.

    Raises InputError naming the line where a cell is missing, a path leaves the folder or is an
    address, and the columns where those needed are not there.
    """
    where = f"--images {file}"
    if not file.is_file():
        raise InputError(f"{where}: no such file")
    rows = _parquet(file) if file.suffix.lower() == ".parquet" else _text(file)
    folder = file.resolve().parent

    def read(name: str) -> bytes:
        return read_file(folder / name, f"{where}: {name}")

    return listing(str(file.resolve()), _checked(rows, where), read, scoring)


def _checked(
    rows: Iterator[tuple[int, str, str, str]], where: str
) -> Iterator[tuple[str, str, str]]:
    """(split, label, path) of rows (line, path, label, split)."""
    for line, path, label, split in rows:
        if not path or not label:
            lacks = "label" if path else "path"
            raise InputError(f"{where}, line {line}: no {lacks}")
        if "://" in path:
            raise InputError(
                f"{where}, line {line}: {path!r} is an address; nothing is fetched: list files"
            )
        if ".." in PurePosixPath(path).parts:
            raise InputError(
                f"{where}, line {line}: {path!r} leaves the index's folder: put the index above "
                "its images, or write whole paths"
            )
        if "\0" in path:
            raise InputError(f"{where}, line {line}: {path!r} is no path")
        yield split, label, path


def _columns(names: Sequence[str], where: str) -> tuple[int, int, int | None]:
    """Positions of the columns of paths, labels and (None where there is none) splits."""
    lowered = [name.strip().lower() for name in names]
    found = [[lowered.index(n) for n in known if n in lowered] for known in (PATHS, LABELS, SPLITS)]
    if not found[0] or not found[1]:
        raise InputError(
            f"{where}: the columns path and label are needed (and split, if there is one), in a "
            f"first line that names them; it names {', '.join(map(repr, names[:8]))}"
        )
    return found[0][0], found[1][0], found[2][0] if found[2] else None


def _text(file: Path) -> Iterator[tuple[int, str, str, str]]:
    where = f"--images {file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read: {error}") from None
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        path, label, split = _columns(next(rows, []), where)
        for row in rows:
            if not row:
                continue
            if len(row) <= max(path, label, split or 0):
                raise InputError(f"{where}, line {rows.line_num}: {len(row)} cells, too few")
            part = "" if split is None else row[split]
            yield rows.line_num, row[path].strip(), row[label].strip(), part
    except csv.Error as error:
        raise InputError(f"{where}, line {rows.line_num}: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Of strings, and of labels that are whole numbers."""
    import pyarrow as pa
    import pyarrow.parquet

    where = f"--images {file}"
    try:
        schema = pyarrow.parquet.read_schema(file)
        places = [p for p in _columns(schema.names, where) if p is not None]
        columns = pyarrow.parquet.read_table(file, columns=[schema.names[p] for p in places])
        cells = [columns.column(i).to_pylist() for i in range(len(places))]
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        # names or texts that are no UTF-8, dates beyond the calendar
        raise InputError(f"{where}: cannot be read: {error}") from None
    for line, row in enumerate(zip(*cells, strict=True), 1):
        if not all(value is None or isinstance(value, str | int) for value in row):
            wrong = next(v for v in row if not isinstance(v, str | int) and v is not None)
            raise InputError(f"{where}, row {line}: {_kind(wrong)} where text is needed")
        path, label, split = ["" if v is None else str(v).strip() for v in (*row, "")[:3]]
        yield line, path, label, split


def _kind(value: Any) -> str:
    return type(value).__name__
