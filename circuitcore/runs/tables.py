"""The tables of a run folder, as parquet files that hold the sha256 of their own content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from circuitcore.errors import InputError
from circuitcore.inputs.read import Inputs
from circuitcore.machine.files import SEAL, write_atomically
from circuitcore.records import Found

IMAGES, CURVES = "images.parquet", "curves.parquet"
OF = b"circuits"  # of which unit files a derived table is, `RunFolder.contents`


def images_table(inputs: Inputs) -> pa.Table:
    """One row an image of the run; without a category ""."""
    names = {c.index: c.name for c in inputs.categories}
    return pa.table(
        {
            "id": pa.array([i.id for i in inputs.images], pa.int64()),
            "path": [i.path for i in inputs.images],
            "category": [names.get(i.category, "") for i in inputs.images],
            "split": [i.split for i in inputs.images],
            "sha256": [i.sha256 for i in inputs.images],
        }
    )


def write_images(path: Path, inputs: Inputs) -> None:
    """``images.parquet``: one row an image of the run."""
    write_table(path, images_table(inputs))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file.  Raises InputError where it is none or damaged."""
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def read_table(path: Path) -> pa.Table:
    """A table as `write_table` left it, or one without a seal of an earlier version.

    Raises InputError where it is none, or its content does not match its sha256.
    """
    try:
        with path.open("rb") as file:
            found = pyarrow.parquet.read_table(pa.BufferReader(file.read()))
        told = dict(found.schema.metadata or {})
        seal = told.pop(SEAL.encode(), None)
        plain = found.replace_schema_metadata(told)
        if seal is not None and seal.decode("ascii", "replace") != _content(plain):
            raise InputError(f"{path}: damaged: its content does not match its sha256")
        return plain
    except InputError:
        raise
    except Exception as error:  # whatever Arrow makes of a damaged file: OSError, MemoryError ...
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file atomically, with the sha256 of its content."""
    told = {**(table.schema.metadata or {}), SEAL.encode(): _content(table).encode()}
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table.replace_schema_metadata(told), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _content(table: pa.Table) -> str:
    """sha256 of names, types, values and metadata, however they are stored."""
    digest = hashlib.sha256(f"{table.num_rows}".encode())
    for key, value in sorted((table.schema.metadata or {}).items()):
        if key != b"ARROW:schema":
            digest.update(b"%b=%b\0" % (key, value))
    for name in table.column_names:
        column = table[name]
        digest.update(f"{name}|{column.type}|".encode())
        digest.update(pc.is_valid(column).to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_string(column.type):
            for chunk in column.chunks:
                lengths = pc.binary_length(chunk).fill_null(0)
                digest.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            digest.update("".join(pc.fill_null(column, "").to_pylist()).encode())
        else:
            plain = column if column.null_count == 0 else pc.fill_null(column, 0)
            digest.update(plain.to_numpy().tobytes())
    return digest.hexdigest()


def curve_rows(records: Sequence[Found]) -> list[dict[str, Any]]:
    """One row a category, stage and level."""
    return [
        {"category": r.category, "index": r.index, "stage": s.stage, "chosen": i == s.chosen}
        | level.model_dump()
        for r in records
        for s in r.stages
        for i, level in enumerate(s.levels)
    ]


def curves_table(records: Sequence[Found], contents: str) -> pa.Table:
    """One row a category, stage and level; ``contents``: of which unit files."""
    return pa.Table.from_pylist(curve_rows(records)).replace_schema_metadata({OF: contents})


def write_curves(folder: Path, records: Sequence[Found], contents: str) -> None:
    """``curves.parquet``: one row a category, stage and level."""
    write_table(folder / CURVES, curves_table(records, contents))
