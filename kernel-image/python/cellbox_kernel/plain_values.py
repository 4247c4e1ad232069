"""Turns any Python value into one that JSON can say, without failing and without losing what the value says."""

from __future__ import annotations

import base64
import datetime
import decimal
import enum
import sys
from collections.abc import Iterable
from typing import Any

from .messages import is_printable, printable

# Integers beyond this are rounded by every reader that keeps numbers as doubles (JavaScript, many JSON parsers).
MAX_EXACT_INTEGER = 2**53 - 1
MAX_DEPTH = 50
# Values visited one by one (flat columns are not) before the conversion is given up.
MAX_NODES = 2_000_000
# Characters of text before the conversion is given up.
MAX_TEXT = 64 * 1024 * 1024


class NotPlainError(ValueError):
    """The value is too large or, in strict mode, of a kind that JSON has no word for."""


class PlainValues:
    """One conversion. Rules, also for what is nested:

    - NaN, infinities, `pandas.NA` → null; `NaT` → "NaT"; integers beyond 2**53 → their decimal text
    - dates and times → ISO 8601; durations → ISO 8601 (`P1DT2H0M0S`); Decimal → its text; bytes → base64
    - numpy scalars and arrays → numbers and lists; sets and tuples → lists; keys → text
    - anything else → `str()`, or NotPlainError where `strict`
    - a value whose own code fails → a text that names its type, or that error where `strict`

    `nodes` and `text` count what was spent of the two limits.
    """

    def __init__(self, *, strict: bool = False, max_nodes: int | None = None, max_text: int = MAX_TEXT) -> None:
        self.nodes = 0
        self.text = 0
        self._max_nodes = MAX_NODES if max_nodes is None else max_nodes
        self._max_text = max_text
        self._strict = strict
        self._open: set[int] = set()

    def column(self, values: list[Any]) -> list[Any]:
        """A flat list of values, quickly when they are all of the plain kinds."""
        kinds = set(map(type, values))
        kinds.discard(type(None))
        if kinds <= {bool, str}:
            texts = [value for value in values if type(value) is str]
            self._spend(0, sum(map(len, texts)))
            if is_printable("".join(texts)):
                return values
            self._spend(len(values), 0)
            return [printable(value) if type(value) is str else value for value in values]
        if kinds == {int}:
            present = values if None not in values else [value for value in values if value is not None]
            if min(present) >= -MAX_EXACT_INTEGER and max(present) <= MAX_EXACT_INTEGER:
                return values
            # The whole column, so that identifiers are of one type.
            return [None if value is None else _integer_text(value) for value in values]
        if kinds == {float}:
            return [value if value is not None and value - value == 0 else None for value in values]
        return [self.value(value) for value in values]

    def value(self, value: Any, depth: int = 0) -> Any:
        if value is None or value is True or value is False:
            return value
        kind = type(value)
        if kind is str:
            self._spend(0, len(value))
            return printable(value)
        if kind is int:
            return value if -MAX_EXACT_INTEGER <= value <= MAX_EXACT_INTEGER else _integer_text(value)
        if kind is float:
            return value if value - value == 0 else None
        self._spend(1, 0)
        try:
            if isinstance(value, dict | list | tuple | set | frozenset):
                self._spend(len(value), 0)
                return self._container(value, depth)
            return self._scalar(value, depth)
        except NotPlainError:
            raise
        except Exception as error:
            if self._strict:
                raise
            return f"<{kind.__name__} without text: {type(error).__name__}>"

    def _spend(self, nodes: int, text: int) -> None:
        self.nodes += nodes
        self.text += text
        if self.nodes > self._max_nodes or self.text > self._max_text:
            raise NotPlainError("too large")

    def _said(self, text: str) -> str:
        self._spend(0, len(text))
        return text

    def _container(self, value: Any, depth: int) -> Any:
        if depth >= MAX_DEPTH or id(value) in self._open:
            if self._strict:
                raise NotPlainError("nested too deeply or contains itself")
            return "..."
        self._open.add(id(value))
        try:
            if isinstance(value, dict):
                return {self.key(key): self.value(item, depth + 1) for key, item in value.items()}
            return [self.value(item, depth + 1) for item in value]
        finally:
            self._open.discard(id(value))

    def _scalar(self, value: Any, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return self.value(value.value, depth + 1)
        if isinstance(value, str):
            return printable(self._said(str.__str__(value)))
        if isinstance(value, int):
            return self.value(int(value))
        if isinstance(value, float):
            return self.value(float(value))
        if isinstance(value, decimal.Decimal):
            return str(value) if value.is_finite() else None
        if isinstance(value, datetime.timedelta):
            return _duration(value)
        if isinstance(value, datetime.datetime | datetime.date | datetime.time):
            return value.isoformat()  # pandas' NaT is a datetime and answers "NaT"
        if isinstance(value, bytes | bytearray | memoryview):
            size = value.nbytes if isinstance(value, memoryview) else len(value)
            self._spend(0, size + size // 3)
            return base64.b64encode(value).decode("ascii")
        if type(value).__name__ == "NAType":
            return None
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
            return self._numpy(numpy, value, depth)
        if self._strict:
            raise NotPlainError(f"JSON has no word for {type(value).__name__}")
        return printable(self._said(str(value)))

    def _numpy(self, numpy: Any, value: Any, depth: int) -> Any:
        if isinstance(value, numpy.ma.core.MaskedConstant):
            return None
        if isinstance(value, numpy.datetime64 | numpy.timedelta64) and numpy.isnat(value):
            return "NaT"
        if isinstance(value, numpy.datetime64):
            return str(value)
        if isinstance(value, numpy.timedelta64):
            item = value.astype("timedelta64[us]").item()
            return self.value(item, depth + 1)
        if isinstance(value, numpy.ndarray):
            self._spend(value.size, 0)  # before its values become objects
            return self._container(value.tolist(), depth) if value.ndim else self.value(value.tolist(), depth + 1)
        item = value.item()
        if type(item) is type(value):  # long double has no Python counterpart
            return self.value(float(item), depth + 1) if isinstance(item, numpy.floating) else str(item)
        return self.value(item, depth + 1)

    @staticmethod
    def key(key: Any) -> str:
        """A dict key or column name as text."""
        if isinstance(key, str):
            return printable(str.__str__(key))
        try:
            return printable(str(key))
        except Exception as error:  # its own code fails, and a name it must have
            return f"<{type(key).__name__} without text: {type(error).__name__}>"


def unique_names(names: Iterable[Any]) -> list[str]:
    """Column names as distinct texts: a second `a` becomes `a.1`, as in pandas' own readers."""
    texts = [PlainValues.key(name) for name in names]
    taken = set(texts)
    seen: set[str] = set()
    unique = []
    for text in texts:
        name, count = text, 0
        while name in seen or (count and name in taken):
            count += 1
            name = f"{text}.{count}"
        seen.add(name)
        unique.append(name)
    return unique


def _integer_text(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write out thousands of decimal digits
        return hex(value)


def _duration(value: datetime.timedelta) -> str:
    """ISO 8601, written as pandas writes its own."""
    if hasattr(value, "isoformat"):  # pandas.Timedelta
        return value.isoformat()
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    return f"P{value.days}DT{hours}H{minutes}M{seconds}{fraction}S"
