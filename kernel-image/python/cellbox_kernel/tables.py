"""Tables of pandas, polars and pyarrow as a dict of columns."""

from __future__ import annotations

import sys
from typing import Any

from .plain_values import PlainValues, unique_names


def table_columns(obj: Any, row_limit: int, cell_limit: int) -> tuple[dict[str, list[Any]], int, int] | None:
    """`(columns, rows in them, rows of the table)`, or None when `obj` is not a table.

    The index is not included. Nothing is imported: an object can only be a table of a library that is loaded.
    """
    for library, class_name, read in (
        ("pandas", "DataFrame", _pandas),
        ("polars", "DataFrame", _polars),
        ("pyarrow", "Table", _pyarrow),
    ):
        table_class = getattr(sys.modules.get(library), class_name, None)
        if isinstance(table_class, type) and isinstance(obj, table_class):
            names, total, columns = read(obj)
            rows = min(total, row_limit, cell_limit // max(1, len(names)))
            return _converted(names, columns(rows)), rows, total
    return None


def _converted(names: list[Any], columns: Any) -> dict[str, list[Any]]:
    # One conversion per column, so that the budget for nested values is a column's own.
    return {name: PlainValues().column(values) for name, values in zip(unique_names(names), columns, strict=True)}


def _pandas(frame: Any) -> Any:
    def columns(rows: int) -> Any:
        shown = frame.iloc[:rows]
        # By position: names need not be unique.
        return (shown.iloc[:, position].tolist() for position in range(shown.shape[1]))

    return list(frame.columns), len(frame), columns


def _polars(frame: Any) -> Any:
    return frame.columns, frame.height, lambda rows: (column.to_list() for column in frame.head(rows).get_columns())


def _pyarrow(table: Any) -> Any:
    return (
        table.column_names,
        table.num_rows,
        lambda rows: (column.to_pylist() for column in table.slice(0, rows).columns),
    )
