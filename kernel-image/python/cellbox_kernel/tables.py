"""Tables of pandas, polars and pyarrow as a dict of columns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import pandas_columns
from .plain_values import NotPlainError, PlainValues, unique_names

# What one table may spend: values that are converted one by one, and characters.
MAX_NODES = 200_000
MAX_TEXT = 32 * 1024 * 1024
# Rows that are converted first, to learn what a row costs.
SAMPLE_ROWS = 64


@dataclass(frozen=True)
class Table:
    """A table of some library; `columns(n, plain)` converts the first n rows of each column."""

    names: list[Any]
    rows: int
    columns: Callable[[int, PlainValues], Iterator[list[Any]]]


def table_columns(obj: Any, row_limit: int, cell_limit: int) -> tuple[dict[str, list[Any]], int, int] | None:
    """`(columns, rows in them, rows of the table)`, or None when `obj` is not a table.

    The index is not included. Rows are left out beyond the limits and beyond what can be said in a moment. Nothing is
    imported: an object can only be a table of a library that is loaded.
    """
    table = _read(obj)
    if table is None:
        return None
    rows = min(table.rows, row_limit, cell_limit // max(1, len(table.names)))
    rows = _affordable_rows(table, rows)
    while True:
        try:
            columns = list(table.columns(rows, _plain_values()))
            break
        except NotPlainError:  # later rows cost more than the first ones
            if rows == 0:
                raise
            rows //= 2
    return dict(zip(unique_names(table.names), columns, strict=True)), rows, table.rows


def _read(obj: Any) -> Table | None:
    for library, class_name, read in _KINDS:
        table_class = getattr(sys.modules.get(library), class_name, None)
        if isinstance(table_class, type) and isinstance(obj, table_class):
            return read(obj)
    return None


def _plain_values() -> PlainValues:
    return PlainValues(max_nodes=MAX_NODES, max_text=MAX_TEXT)


def _affordable_rows(table: Table, rows: int) -> int:
    if rows <= SAMPLE_ROWS:
        return rows
    sample = SAMPLE_ROWS
    while sample:
        plain = _plain_values()
        try:
            for _ in table.columns(sample, plain):
                pass
        except NotPlainError:
            sample //= 2
            continue
        share = max(plain.nodes / MAX_NODES, plain.text / MAX_TEXT) / sample
        return rows if share * rows <= 1 else int(1 / share)
    return 0


def _pandas(frame: Any) -> Table:
    def columns(rows: int, plain: PlainValues) -> Iterator[list[Any]]:
        shown = frame.iloc[:rows]
        dtypes = set(frame.dtypes)
        if len(dtypes) == 1 and getattr(next(iter(dtypes)), "kind", "") in "iufb" and shown.to_numpy().dtype in dtypes:
            return map(plain.column, shown.to_numpy().T.tolist())  # ten thousand columns at once
        # By position: names need not be unique.
        return (pandas_columns.plain_column(shown.iloc[:, at], plain) for at in range(shown.shape[1]))

    return Table(list(frame.columns), len(frame), columns)


def _polars(frame: Any) -> Table:
    def columns(rows: int, plain: PlainValues) -> Iterator[list[Any]]:
        return (plain.column(column.to_list()) for column in frame.head(rows).get_columns())

    return Table(frame.columns, frame.height, columns)


def _pyarrow(table: Any) -> Table:
    def columns(rows: int, plain: PlainValues) -> Iterator[list[Any]]:
        return (plain.column(arrow_values(column)) for column in table.slice(0, rows).columns)

    return Table(table.schema.names, table.num_rows, columns)


def arrow_values(column: Any) -> list[Any]:
    """Also of columns that hold what Python has no value for: years beyond 9999, broken UTF-8 …"""
    try:
        return column.to_pylist()
    except Exception:  # the column's kind decides which one
        return [_arrow_value(value) for value in column]


def _arrow_value(value: Any) -> Any:
    try:
        return value.as_py()
    except Exception:
        pass
    try:
        return str(value.cast("string"))
    except Exception:
        return f"<{value.type} that Python has no value for>"


_KINDS: tuple[tuple[str, str, Callable[[Any], Table]], ...] = (
    ("pandas", "DataFrame", _pandas),
    ("polars", "DataFrame", _polars),
    ("pyarrow", "Table", _pyarrow),
    ("pyarrow", "RecordBatch", _pyarrow),
)
