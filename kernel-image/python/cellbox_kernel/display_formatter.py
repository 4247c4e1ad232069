"""The display of a value: all its formats, of which one that fails does not fail the cell."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.formatters import DisplayFormatter

TEXT = "text/plain"


class CellboxDisplayFormatter(DisplayFormatter):
    """The stock formatter, plus:

    - `formatting` is true while it works: the shell can tell a `_repr_…_` method that raises from a cell that does;
    - a value that has no format left has a text of its type's name.
    """

    formatting = False

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        outer, self.formatting = self.formatting, True
        failed, self.failed = self.failed, False
        try:
            data, metadata = self._format(obj, include, exclude)
            if self.failed and not data and not include:
                data = {TEXT: f"<{type(obj).__module__}.{type(obj).__qualname__} object at {id(obj):#x}>"}
            return data, metadata
        finally:
            self.formatting, self.failed = outer, failed

    def _format(self, obj: Any, include: Any, exclude: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            data, metadata = super().format(obj, include, exclude)
            if isinstance(data, dict) and isinstance(metadata, dict):
                return data, metadata
        except (TypeError, ValueError, AttributeError):
            pass
        # `_repr_mimebundle_` is taken as it comes; this one answered with what is none.
        self.mimebundle_formatter.enabled = False
        try:
            return super().format(obj, include, exclude)
        finally:
            self.mimebundle_formatter.enabled = True

    # Whether the value that is being formatted has a method that raised.
    failed = False

    def report(self, traceback: list[str]) -> None:
        """Says on stderr that a method of the value has raised."""
        self.failed = True
        print("".join(line if line.endswith("\n") else line + "\n" for line in traceback), end="", file=sys.stderr)
