"""Display formatters: what a value looks like as data, as a chart and as JSON.

None of them ever raises into the user's cell or writes on the user's stderr: a value that can't be converted simply
has no such representation. None imports a library that the user's program has not imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from IPython.core.formatters import BaseFormatter, JSONFormatter
from IPython.utils.dir2 import get_real_method
from traitlets import Integer, ObjectName, Unicode

from .plain_values import PlainValues
from .tables import table_columns

DATA_MIME = "e2b/data"
CHART_MIME = "e2b/chart"


class QuietFormatter(BaseFormatter):
    """A formatter whose failures stay its own.

    Looks at functions registered with `for_type`, then at `represent`, then at the object's own method
    `print_method`.
    """

    def __call__(self, obj: Any) -> Any:
        if not self.enabled:
            return None
        try:
            try:
                printer = self.lookup(obj)
            except KeyError:
                printer = None
            result = printer(obj) if printer else self.represent(obj)
            if result is None and (method := get_real_method(obj, self.print_method)) is not None:
                result = self.checked(method())
            return result
        except Exception:  # the rule of this module
            return self.failed(obj)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what libraries written in Rust raise for errors of their own
                raise
            return self.failed(obj)

    def represent(self, obj: Any) -> Any:
        """The representation of the kinds of object this formatter knows; None for others."""
        raise NotImplementedError

    def checked(self, value: Any) -> Any:
        """What the object's own method answered, when it is of the right type."""
        return PlainValues().value(value) if isinstance(value, dict) else None

    def failed(self, obj: Any) -> Any:
        """What stands for an object whose representation could not be made."""
        return None


class DataFormatter(QuietFormatter):
    """`e2b/data`: a table as a dict of columns, or what `_repr_e2b_data_()` answers.

    Rows beyond a limit (see `tables` for those that are not settings) are left out of this representation; the bundle's
    metadata then says `{"rows": shown, "total_rows": all}`.
    """

    format_type = Unicode(DATA_MIME)
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict

    row_limit = Integer(100_000, help="Rows of a table shown as data.").tag(config=True)
    cell_limit = Integer(1_000_000, help="Cells of a table shown as data.").tag(config=True)

    def represent(self, obj: Any) -> Any:
        with _no_warnings():
            table = table_columns(obj, self.row_limit, self.cell_limit)
        if table is None:
            return None
        columns, rows, total = table
        return (columns, {"rows": rows, "total_rows": total}) if rows < total else columns


class ChartFormatter(QuietFormatter):
    """`e2b/chart`: the data drawn in a matplotlib figure, or what `_repr_e2b_chart_()` answers.

    A figure that holds no chart, or one that can't be read, is `{}`.
    """

    format_type = Unicode(CHART_MIME)
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = dict

    point_limit = Integer(250_000, help="Points of a figure beyond which its data is not extracted.").tag(config=True)

    def represent(self, obj: Any) -> Any:
        if not _is_figure(obj):
            return None
        if _count_points(obj) > self.point_limit:
            return {}
        from e2b_charts import chart_figure_to_dict

        with _no_warnings():
            return PlainValues().value(chart_figure_to_dict(obj))

    def failed(self, obj: Any) -> Any:
        return {} if _is_figure(obj) else None


class PlainJSONFormatter(QuietFormatter, JSONFormatter):
    """`application/json`: lists and dicts whose content JSON can say, else what `_repr_json_()` answers."""

    size_limit = Integer(64 * 1024 * 1024, help="Bytes of JSON beyond which a value has none.").tag(config=True)
    length_limit = Integer(5_000_000, help="Items of a list or dict beyond which it has none.").tag(config=True)

    def represent(self, obj: Any) -> Any:
        if not isinstance(obj, list | dict) or len(obj) > self.length_limit:
            return None
        try:
            encoded = orjson.dumps(
                obj, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_STRICT_INTEGER
            )
        except TypeError:  # integers beyond 2**53, lone surrogates, Decimal, bytes …
            encoded = None
        if encoded is not None:
            plain = orjson.loads(encoded) if len(encoded) <= self.size_limit else None
        else:
            plain = PlainValues(strict=True).value(obj)
        return None if plain is None else (plain, {"expanded": True})

    def checked(self, value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 2:
            data, metadata = value
            return (PlainValues().value(data), metadata)
        return PlainValues().value(value) if isinstance(value, list | dict) else None


@contextmanager
def _no_warnings() -> Iterator[None]:
    """For conversions only: leaving it makes Python show the user's own repeated warnings once more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_figure(obj: Any) -> bool:
    figure_class = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
    return figure_class is not None and isinstance(obj, figure_class)


def _count_points(figure: Any) -> int:
    return sum(
        sum(len(line.get_xdata(orig=True)) for line in axes.lines)
        + sum(len(collection.get_offsets()) for collection in axes.collections)
        for axes in figure.get_axes()
    )
