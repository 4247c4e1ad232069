from __future__ import annotations

import enum
import json

import pytest

from cellbox_kernel import messages, plain_values
from cellbox_kernel.plain_values import NotPlainError, PlainValues, unique_names


class Colour(enum.Enum):
    RED = {"r": 255}


class Unsayable:
    def __str__(self):
        raise RuntimeError("no text")


def test_a_value_that_contains_itself_ends():
    loop: list[object] = [1]
    loop.append(loop)
    assert PlainValues().value(loop) == [1, "..."]
    with pytest.raises(NotPlainError):
        PlainValues(strict=True).value(loop)


def test_a_value_met_twice_is_not_a_loop():
    part = [1]
    assert PlainValues(strict=True).value([part, part]) == [[1], [1]]


def test_a_value_that_grows_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(plain_values, "MAX_NODES", 1000)
    level: list[object] = []
    for _ in range(40):
        level = [level, level]
    with pytest.raises(NotPlainError):
        PlainValues().value(level)


def test_enums_bytes_and_keys_become_plain():
    value = {Colour.RED: b"\xff", 1: bytearray(b"a"), None: Colour.RED}
    assert PlainValues().value(value) == {"Colour.RED": "/w==", "1": "YQ==", "None": {"r": 255}}


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "a", "a"], ["a", "a.1", "a.2"]),
        (["a", "a", "a.1", "a.1"], ["a", "a.2", "a.1", "a.1.1"]),
        ([1, "1", 1.0], ["1", "1.1", "1.0"]),
        ([], []),
    ],
)
def test_unique_names_are_distinct_and_keep_the_given_ones(names, unique):
    assert unique_names(names) == unique


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        ({"a": float("nan"), "b": float("inf")}, {"a": None, "b": None}),
        ({"huge": 10**5000}, {"huge": hex(10**5000)}),
        ({"big": 2**80, "nan": float("nan")}, {"big": 2**80, "nan": None}),
        ({"s": "a\ud800", "pair": "\ud83d\ude00"}, {"s": "a\ufffd", "pair": "😀"}),
        ({(1, 2): {3}}, {"(1, 2)": [3]}),
        ({"x": Unsayable()}, {"x": "<Unsayable without text: RuntimeError>"}),
        ({"b": b"\xff"}, {"b": "/w=="}),
    ],
)
def test_any_message_can_be_packed(message, packed):
    assert json.loads(messages.pack(message)) == packed


def test_escaped_lone_surrogates_can_be_unpacked():
    assert messages.unpack(b'{"code": "\\ud800"}') == {"code": "\ud800"}
