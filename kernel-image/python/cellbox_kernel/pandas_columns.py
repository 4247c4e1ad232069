"""Columns of a pandas table as plain values; those of whole dtypes at once, where there is a way.

The texts are the same as those that `PlainValues` makes of single values, which takes a hundred times as long.
"""

from __future__ import annotations

import sys
from typing import Any

from .plain_values import PlainValues

_NAT = "NaT"


def plain_column(series: Any, plain: PlainValues) -> list[Any]:
    kind = series.dtype
    if kind.kind == "M" and hasattr(series.array, "asi8"):
        texts = _zoned_texts(series) if getattr(kind, "tz", None) is not None else _texts(series.to_numpy())
        if texts is not None:
            return plain.column(texts)
    if str(kind) == "timedelta64[ns]":
        return plain.column(_durations(series.to_numpy()))
    if kind.name == "category":
        categories = series.cat.categories.tolist()
        if set(map(type, categories)) == {str}:
            return plain.column([categories[code] if code >= 0 else None for code in series.cat.codes.tolist()])
    return plain.column(series.tolist())


def _texts(values: Any) -> list[str]:
    """ISO 8601 without a zone: with as many digits of the second as each value needs, none, six or nine."""
    numpy = sys.modules["numpy"]
    texts = numpy.full(len(values), _NAT, dtype=object)
    left = ~numpy.isnat(values)
    for unit in ("s", "us", "ns"):
        fits = left & (values == values.astype(f"datetime64[{unit}]")) if unit != "ns" else left
        texts[fits] = numpy.datetime_as_string(values[fits], unit=unit)
        left &= ~fits
    return texts.tolist()


def _zoned_texts(series: Any) -> list[str] | None:
    numpy = sys.modules["numpy"]
    local, utc = series.dt.tz_localize(None).to_numpy(), series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    seconds = numpy.where(numpy.isnat(utc), 0, (local - utc).astype("timedelta64[s]").astype("int64"))
    if (seconds % 60).any():
        return None  # a zone of long ago, whose offset isn't in whole minutes
    suffixes = {offset: _offset(offset) for offset in set(seconds.tolist())}
    pairs = zip(_texts(local), seconds.tolist(), strict=True)
    return [text if text == _NAT else text + suffixes[offset] for text, offset in pairs]


def _offset(seconds: int) -> str:
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02}:{minutes:02}"


def _durations(values: Any) -> list[str]:
    numpy = sys.modules["numpy"]
    missing = numpy.isnat(values).tolist()
    return [
        _NAT if absent else _duration(nanoseconds)
        for absent, nanoseconds in zip(missing, values.astype("int64").tolist(), strict=True)
    ]


def _duration(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    digits = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"P{days}DT{hours}H{minutes}M{seconds}{digits}S"
