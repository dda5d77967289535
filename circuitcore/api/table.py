"""Tables that calls return: rows of equal keys, as a pandas data frame where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from circuitcore.errors import UsageError

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import xarray

NEEDS = "this needs {0}: pip install 'circuitcore[analysis]'"
SHOWN = 30  # rows that a notebook shows
BATCH = 10_000  # rows that are objects at a time while a long table is walked


class ArrowRows(Sequence[Mapping[str, Any]]):
    """Rows of an Arrow table, each made when it is asked for: half a million are few bytes."""

    def __init__(self, table: pyarrow.Table) -> None:
        self.table = table

    @overload
    def __getitem__(self, at: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> ArrowRows: ...
    def __getitem__(self, at: int | slice) -> Mapping[str, Any] | ArrowRows:
        """A row, or some of them."""
        if isinstance(at, slice):
            return ArrowRows(self.table.take(list(range(len(self))[at])))
        place = range(len(self))[at]
        return dict(self.table.slice(place, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """All of them, in batches."""
        for batch in self.table.to_batches(BATCH):
            yield from batch.to_pylist()

    def __len__(self) -> int:
        return int(self.table.num_rows)


class Table(Sequence[Mapping[str, Any]]):
    """Rows of equal keys, each a mapping; `to_pandas` makes a data frame of them.

    ``nested``: the same rows as the command prints them in JSON, where those have parts.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        nested: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._rows = rows if isinstance(rows, ArrowRows) else tuple(rows)
        self.nested = self._rows if nested is None else tuple(nested)

    @overload
    def __getitem__(self, at: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> Table: ...
    def __getitem__(self, at: int | slice) -> Mapping[str, Any] | Table:
        """A row, or a table of some."""
        return Table(self._rows[at], self.nested[at]) if isinstance(at, slice) else self._rows[at]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows in their order."""
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        if isinstance(self._rows, ArrowRows):
            return tuple(self._rows.table.column_names)
        return tuple(self._rows[0]) if self._rows else ()

    def column(self, name: str) -> list[Any]:
        """Values of one column, in order of the rows."""
        return [row[name] for row in self._rows]

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame, one row each.  Raises UsageError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError(NEEDS.format("pandas")) from None
        if isinstance(self._rows, ArrowRows):
            return self._rows.table.to_pandas()
        return pandas.DataFrame(list(self._rows))

    def __repr__(self) -> str:
        return f"Table of {len(self)} rows: {', '.join(self.columns)}"

    def _repr_html_(self) -> str:
        """At most thirty rows, for a notebook."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(_shown(v))}</td>' for v in row.values())}</tr>"
            for row in self._rows[:SHOWN]
        )
        rest = len(self) - SHOWN
        more = f"<p>and {rest} rows more: to_pandas()</p>" if rest > 0 else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


class Overlaps(Table):
    """Overlap of all pairs of circuits, a row a pair and layer; ``layer`` "" is the whole network.

    ``names``: of the circuits, in order; ``matrices``: overlap and chance by layer, [K, K] each.
    """

    def __init__(
        self,
        rows: ArrowRows,
        names: Sequence[str],
        matrices: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        super().__init__(rows)
        self.names, self._matrices = tuple(names), matrices

    def of_layer(self, layer: str = "") -> Table:
        """The pairs in one layer; "" is the whole network.  Raises UsageError if unknown."""
        import pyarrow.compute as pc

        self.matrix(layer)
        table = self._rows.table  # type: ignore[union-attr]
        return Table(ArrowRows(table.filter(pc.equal(table["layer"], layer))))

    def matrix(self, layer: str = "") -> np.ndarray:
        """Overlap float64 [K, K] of one layer, 1 on the diagonal.  Raises UsageError if unknown."""
        if layer not in self._matrices:
            known = ", ".join(filter(None, self._matrices))
            raise UsageError(f"no layer {layer!r}: one of {known}")

        return self._matrices[layer][0]

    def to_xarray(self) -> xarray.Dataset:
        """``overlap`` and ``chance`` over (layer, a, b); layer "" is the whole network.

        Raises UsageError where xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise UsageError(NEEDS.format("xarray")) from None
        both = [np.stack([m[i] for m in self._matrices.values()]) for i in (0, 1)]
        dims = ("layer", "a", "b")
        return xarray.Dataset(
            {"overlap": (dims, both[0]), "chance": (dims, both[1])},
            {"layer": list(self._matrices), "a": list(self.names), "b": list(self.names)},
        )


class Lesions(Table):
    """What each lesion does to each category, a row a pair; `Run.lesion`.

    ``summary``: a row a lesion, its own category beside the mean of the others.
    """

    def __init__(self, rows: Table, summary: Table) -> None:
        super().__init__(rows, rows.nested)
        self.summary = summary

    def matrix(
        self, kind: str = "circuit", column: str = "change"
    ) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
        """Names of lesions and of categories, and ``column`` float64 [lesions, categories].

        ``change``: of CSA to the unpruned network, ``beyond_random``: to the random lesion.  Raises
        UsageError where there is no such lesion or column.
        """
        mine = [row for row in self if row["kind"] == kind]
        if not mine or column not in mine[0]:
            raise UsageError(f"no {column!r} of lesions of kind {kind!r}")
        cut = {row["lesion_unit"]: row["lesion"] for row in mine}
        names = {row["unit"]: row["category"] for row in mine}
        values = np.array([row[column] for row in mine], float).reshape(len(cut), len(names))
        return tuple(cut.values()), tuple(names.values()), values


def records(rows: Iterator[Any] | Sequence[Any]) -> Table:
    """A table of records (pydantic models), without nesting."""
    from circuitcore.analysis.rows import flat

    nested = [row.model_dump() for row in rows]
    return Table([flat(row) for row in nested], nested)


def _shown(value: Any) -> str:
    if value is None:
        return "NA"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
