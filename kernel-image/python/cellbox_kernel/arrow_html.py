"""pyarrow tables as HTML, which the library itself does not have."""

from __future__ import annotations

import html
from typing import Any

from .messages import printable
from .plain_values import NotPlainError, PlainValues
from .tables import arrow_values

MAX_ROWS, MAX_COLUMNS, MAX_CELL = 20, 20, 200


def arrow_table_html(table: Any) -> str | None:
    """The first rows and columns, and the size of the whole; None for a table that can't be shown so."""
    names = [printable(name) for name in table.schema.names[:MAX_COLUMNS]]
    kinds = [str(field.type) for field in list(table.schema)[:MAX_COLUMNS]]
    try:
        plain = PlainValues()
        columns = [plain.column(arrow_values(table.column(at).slice(0, MAX_ROWS))) for at in range(len(names))]
    except NotPlainError:
        return None
    head = _row("th", names) + _row("td", kinds)
    body = "".join(_row("td", values) for values in zip(*columns, strict=True))
    size = f"{table.num_rows} rows × {len(table.schema.names)} columns"
    return f'<table border="1" class="dataframe"><thead>{head}</thead><tbody>{body}</tbody></table><p>{size}</p>'


def _row(cell: str, values: Any) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(_shortened(value))}</{cell}>" for value in values) + "</tr>"


def _shortened(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"
