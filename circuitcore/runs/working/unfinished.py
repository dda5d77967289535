"""Counts over all pairs that take minutes, kept as they grow: whoever is killed loses a block.

``RUN/unfinished/overlap-LAYER.parquet`` holds the upper triangle of one layer's counts so far, of
which circuits they are, and up to which byte of the masks.  A file that is damaged, or of other
circuits, is as good as none.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from circuitcore.errors import InputError
from circuitcore.runs.tables import OF, read_table, write_table

FOLDER = "unfinished"
BYTES = b"bytes"  # how many of every mask are counted


class Unfinished:
    """What is counted so far of a run whose circuits are those of ``contents``."""

    def __init__(self, run: Path, contents: str) -> None:
        self._folder, self._contents = run / FOLDER, contents

    def found(self, layer: int) -> tuple[int, np.ndarray] | None:
        """Bytes counted of every mask, and the counts, int64 [K, K]; None where there are none."""
        try:
            table = read_table(self._path(layer))
            told = table.schema.metadata or {}
            if told.get(OF) != self._contents.encode():
                return None
            counts = table["counts"].to_numpy()
            size = int((8 * len(counts) + 1) ** 0.5 - 1) // 2
            square = np.zeros((size, size), np.int64)
            square[np.triu_indices(size)] = counts
            return int(told[BYTES]), np.triu(square) + np.triu(square, k=1).T
        except (InputError, KeyError, ValueError):
            return None

    def keep(self, layer: int, count: int, counts: np.ndarray) -> None:
        """Write the counts of the first ``count`` bytes; a disk that refuses it is no matter."""
        table = pa.table({"counts": counts[np.triu_indices(len(counts))]})
        told = {OF: self._contents, BYTES: str(count)}
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            write_table(self._path(layer), table.replace_schema_metadata(told))

    def _path(self, layer: int) -> Path:
        return self._folder / f"overlap-{layer:04d}.parquet"


def forget(run: Path) -> None:
    """Delete what is counted so far: it is done."""
    for path in (run / FOLDER).glob("overlap-*.parquet"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (run / FOLDER).rmdir()
