"""Serialises Jupyter messages so that no value a program displays can stop a message from being sent."""

from __future__ import annotations

import json
from typing import Any

import orjson
from jupyter_client.jsonutil import json_default

# Less than what any setting of `sys.set_int_max_str_digits` forbids.
MAX_INTEGER_BITS = 2048

_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def pack(message: Any) -> bytes:
    """A message part as UTF-8 JSON.

    - NaN and infinities become null.
    - Lone surrogates become U+FFFD; two halves that belong together are joined.
    - What JSON has no word for becomes its `str()`; integers beyond 64 bits stay integers, and beyond thousands of bits
      become text.
    """
    try:
        return orjson.dumps(message, default=json_default, option=_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(_plain(message, 0), ensure_ascii=False, allow_nan=False).encode()


def unpack(data: bytes | str) -> Any:
    """The inverse of `pack` for what a client may send: also accepts lone surrogates written as escapes."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data.decode("utf-8", "replace") if isinstance(data, bytes) else data)


def printable(text: str) -> str:
    """`text` without lone surrogates, which no UTF-8 message can carry."""
    if is_printable(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_printable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(str(value))
    if isinstance(value, int):
        # Python refuses to write out longer ones in decimal.
        return int(value) if int(value).bit_length() < MAX_INTEGER_BITS else hex(value)
    if isinstance(value, float):
        return float(value) if value - value == 0 else None
    if depth < 200:
        if isinstance(value, dict):
            return {printable(str(key)): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(item, depth + 1) for item in value]
        try:
            return _plain(json_default(value), depth + 1)
        except Exception:  # not a kind of value that has a conversion, or one whose own code fails
            pass
    try:
        return printable(str(value))
    except Exception as error:  # a `__str__` of the user's that fails: the message matters more
        return f"<{type(value).__name__} without text: {type(error).__name__}>"
