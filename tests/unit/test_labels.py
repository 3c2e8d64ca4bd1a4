"""Attribute values: text, not too long, not too many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from amptalk_otel._labels import MAX_DISTINCT, MAX_LENGTH, OTHER, clean, count_in, error_type_of, message_of
from amptalk_otel._type_recorder import TypeRecorder
from amptalk_otel.demo.runtime import MessageType
from tests.support import note


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("Grüße 日本 🎙", "Grüße 日本 🎙"),
        ("line\nbreak\r\t\0\x7f\x85.", "line break     ."),
        ("\n", " "),
        (5, "5"),
        (None, "None"),
        ("", OTHER),
        ("\ud800 alone", "? alone"),
        ("x" * 500, "x" * MAX_LENGTH),
    ],
)
def test_any_value_becomes_text_that_can_be_encoded(value: object, expected: str) -> None:
    assert clean(value) == expected
    clean(value).encode()


def test_the_fifty_first_value_is_other() -> None:
    record = TypeRecorder("command")
    for number in range(MAX_DISTINCT + 5):
        for _ in range(2):
            count_in(record, "failed", f"value {number}")
    assert len(record.failed) == MAX_DISTINCT + 1
    assert record.failed[OTHER] == 10
    count_in(record, "failed", "value 0")
    assert record.failed["value 0"] == 3
    assert sum(record.failed.values()) == 2 * (MAX_DISTINCT + 5) + 1


class Outer:
    class InnerError(Exception):
        """Has a qualified name."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("secret"), "ValueError"),
        (Outer.InnerError(), "Outer.InnerError"),
        (asyncio.CancelledError(), "CancelledError"),
        (type("E" * 300, (Exception,), {})(), "E" * MAX_LENGTH),
    ],
)
def test_an_error_is_told_by_its_class_and_never_by_its_text(error: BaseException, expected: str) -> None:
    assert error_type_of(error) == expected


class TestMessageOf:
    def test_a_message_is_itself(self) -> None:
        message = note()
        assert message_of(message) is message

    def test_the_last_message_of_a_tuple_is_meant(self) -> None:
        message = note(MessageType.ERROR)
        assert message_of((1, 2, message)) is message
        assert message_of((1, message, "label")) is message

    @pytest.mark.parametrize("item", [(), (1, 2), None, "text", [1]])
    def test_what_has_no_message_is_itself(self, item: Any) -> None:
        assert message_of(item) is item

    def test_a_named_tuple_that_is_a_message_itself_has_no_message_in_it(self) -> None:
        item = SimpleNamespace(message_type="x")
        assert message_of(item) is item
