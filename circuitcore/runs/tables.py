"""The tables of a run folder, as parquet files: its images and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from circuitcore.errors import InputError
from circuitcore.inputs.read import Inputs
from circuitcore.machine.files import write_atomically
from circuitcore.records import Found


def write_images(path: Path, inputs: Inputs) -> None:
    """``images.parquet``: one row an image of the run; without a category ""."""
    names = {c.index: c.name for c in inputs.categories}
    table = pa.table(
        {
            "id": pa.array([i.id for i in inputs.images], pa.int64()),
            "path": [i.path for i in inputs.images],
            "category": [names.get(i.category, "") for i in inputs.images],
            "split": [i.split for i in inputs.images],
            "sha256": [i.sha256 for i in inputs.images],
        }
    )
    write_table(path, table)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file.  Raises InputError where it is none."""
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return rows


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file atomically."""
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def curve_rows(records: Sequence[Found]) -> list[dict[str, Any]]:
    """One row a category, stage and level."""
    return [
        {"category": r.category, "index": r.index, "stage": s.stage, "chosen": i == s.chosen}
        | level.model_dump()
        for r in records
        for s in r.stages
        for i, level in enumerate(s.levels)
    ]


def write_curves(folder: Path, records: Sequence[Found]) -> None:
    """``curves.parquet``: one row a category, stage and level."""
    write_table(folder / "curves.parquet", pa.Table.from_pylist(curve_rows(records)))
