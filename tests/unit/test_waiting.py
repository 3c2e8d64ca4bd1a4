"""The inbox's shadow: which arrival belongs to the message that leaves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amptalk_otel._type_recorder import TypeRecorder
from amptalk_otel._waiting import UNKNOWN_ARRIVAL, Arrival, ByMessage, InOrder, Waiting

RECORD = TypeRecorder("kind")


def at(moment: float) -> Arrival:
    return RECORD, moment, None


def messages(number: int) -> list[Any]:
    return [SimpleNamespace(index=index) for index in range(number)]


@pytest.mark.parametrize("kind", [InOrder, ByMessage])
def test_what_came_first_is_the_oldest_until_it_leaves(kind: type[InOrder | ByMessage]) -> None:
    waiting: Waiting = kind()
    first, second = messages(2)
    assert (waiting.oldest(), len(waiting)) == (None, 0)
    waiting.remember(first, at(1.0))
    waiting.remember(second, at(2.0))
    assert (waiting.oldest(), len(waiting)) == (1.0, 2)
    assert waiting.recall(first) == at(1.0)
    assert (waiting.oldest(), len(waiting)) == (2.0, 1)
    assert waiting.recall(second) == at(2.0)
    assert waiting.recall(second) is None


@pytest.mark.parametrize("kind", [InOrder, ByMessage])
def test_those_without_a_known_arrival_are_not_the_oldest(kind: type[InOrder | ByMessage]) -> None:
    waiting: Waiting = kind()
    first, second = messages(2)
    waiting.remember(first, at(UNKNOWN_ARRIVAL))
    assert waiting.oldest() is None
    waiting.remember(second, at(2.0))
    assert waiting.oldest() == 2.0


def test_another_order_is_told_by_the_message() -> None:
    waiting, (first, second, third) = ByMessage(), messages(3)
    for moment, message in enumerate((first, second, third), start=1):
        waiting.remember(message, at(moment))
    assert waiting.recall(third) == at(3)
    assert waiting.recall(first) == at(1)
    assert waiting.oldest() == 2


def test_an_object_that_is_there_more_than_once_leaves_an_inbox_of_the_other_order_last_first() -> None:
    waiting, (message, other) = ByMessage(last_first=True), messages(2)
    for moment in (1.0, 2.0, 3.0):
        waiting.remember(message, at(moment))
    waiting.remember(other, at(4.0))
    assert [waiting.recall(message), waiting.recall(other)] == [at(3.0), at(4.0)]
    waiting.remember(message, at(5.0))
    assert (waiting.oldest(), len(waiting)) == (1.0, 3)
    assert [waiting.recall(message) for _ in range(4)] == [at(5.0), at(2.0), at(1.0), None]
    assert len(waiting) == 0


def test_an_object_that_is_there_more_than_once_leaves_in_its_own_order() -> None:
    waiting, (message,) = ByMessage(), messages(1)
    for moment in (1.0, 2.0, 3.0):
        waiting.remember(message, at(moment))
    assert len(waiting) == 3
    assert [waiting.recall(message) for _ in range(2)] == [at(1.0), at(2.0)]
    waiting.remember(message, at(4.0))
    assert (waiting.oldest(), len(waiting)) == (3.0, 2)
    assert [waiting.recall(message) for _ in range(3)] == [at(3.0), at(4.0), None]
