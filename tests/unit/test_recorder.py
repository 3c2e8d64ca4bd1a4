"""The hot path alone, without an event loop: what each turn of a message's way counts."""

from __future__ import annotations

import asyncio
import weakref
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from amptalk_otel import _recorder
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._labels import MAX_DISTINCT, OTHER, RETIRED
from amptalk_otel._reading import TypeReading, read_types
from amptalk_otel._recorder import (
    Observer,
    OperationKey,
    OperationRecorder,
    OrchestratorRecorder,
    StateOwner,
    StateRecorder,
)
from amptalk_otel._under_way import nobody
from tests.support import Clock

make_enum: Any = Enum
KINDS = list(make_enum("Kind", {f"K{number}": f"kind_{number}" for number in range(60)}))


def message(kind: object = "plain", **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(message_type=kind, payload={}, **fields)


def recorder(**options: Any) -> AgentRecorder:
    return AgentRecorder("id", "name", **options)


def read(watched: AgentRecorder) -> tuple[TypeReading, ...]:
    return read_types(watched, lambda: None)[0]


class Told(Observer):
    """Notes what an observer is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def waited(self, message_type: str, seconds: float, context: Any) -> None:
        self.told.append(("waited", message_type, seconds))

    def worked(self, message_type: str, seconds: float, context: Any) -> None:
        self.told.append(("worked", message_type, seconds))

    def sized(self, message_type: str, size_bytes: int) -> None:
        self.told.append(("sized", message_type, size_bytes))

    def operated(self, storage: str, operation: str, error_type: str | None, seconds: float) -> None:
        self.told.append(("operated", storage, operation, error_type, seconds))

    def measured(self, key: OperationKey, seconds: float) -> None:
        self.told.append(("measured", *key, seconds))


def pass_through(watched: AgentRecorder, item: Any, error: BaseException | None = None) -> None:
    """Let a message come, be taken and be processed."""
    watched.arrived(item)
    watched.left(item, nobody, own_loop=True)
    flight = watched.started(item)
    assert flight is not None
    if error is None:
        watched.processed(flight.record, flight.taken_at, item)
    else:
        watched.failed(flight.record, flight.taken_at, item, error)


def test_one_step_at_each_turn_keeps_the_sum_right() -> None:
    watched, item = recorder(), message()
    seen = []
    watched.arrived(item)
    seen.append(read(watched)[0])
    watched.left(item, nobody, own_loop=True)
    seen.append(read(watched)[0])
    flight = watched.started(item)
    assert flight is not None
    seen.append(read(watched)[0])
    watched.processed(flight.record, flight.taken_at, item)
    seen.append(read(watched)[0])
    assert [(turn.received, turn.queued, turn.in_flight, turn.processed) for turn in seen] == [
        (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 1, 0), (1, 0, 0, 1),
    ]  # fmt: skip


def test_observers_are_told_the_same_as_the_buckets() -> None:
    clock, told = Clock(), Told()
    watched = recorder(clock=clock, size_sample_every=1)
    watched.observers = (told,)
    item = message(KINDS[1])
    item.payload = {"a": 1}
    watched.arrived(item)
    clock.advance(1.5)
    watched.left(item, nobody, own_loop=True)
    flight = watched.started(item)
    assert flight is not None
    clock.advance(2.5)
    watched.processed(flight.record, flight.taken_at, item)
    assert told.told == [("sized", "kind_1", 8), ("waited", "kind_1", 1.5), ("worked", "kind_1", 2.5)]
    (kind,) = read(watched)
    assert (kind.size.sum, kind.wait.sum, kind.process.sum) == (8, 1.5, 2.5)


@pytest.mark.parametrize(("every", "sampled"), [(0, 0), (1, 7), (2, 4), (3, 3), (100, 1)])
def test_one_message_in_so_many_is_measured_beginning_with_the_first(every: int, sampled: int) -> None:
    watched = recorder(size_sample_every=every)
    for _ in range(7):
        watched.arrived(message())
    assert read(watched)[0].size.count == sampled


def test_after_fifty_message_types_the_rest_is_other_and_the_sum_is_exact() -> None:
    watched = recorder()
    for kind in KINDS:
        for _ in range(2):
            pass_through(watched, message(kind))
    types = read(watched)
    assert [kind.message_type for kind in types] == [f"kind_{number}" for number in range(MAX_DISTINCT)] + [OTHER]
    assert [kind.received for kind in types] == [2] * MAX_DISTINCT + [20]
    assert sum(kind.processed for kind in types) == 120


def test_there_is_one_other_even_if_it_was_among_the_first_fifty() -> None:
    watched = recorder()
    pass_through(watched, message(None))
    for kind in KINDS:
        pass_through(watched, message(kind))
    types = read(watched)
    assert [kind.message_type for kind in types].count(OTHER) == 1
    assert len(types) == MAX_DISTINCT
    assert types[0].processed == 1 + 60 - (MAX_DISTINCT - 1)


def test_after_fifty_error_types_the_rest_is_other_and_the_sum_is_exact() -> None:
    watched = recorder()
    errors = [type(f"Error{number}", (Exception,), {})() for number in range(60)]
    for error in errors:
        pass_through(watched, message(), error)
    (kind,) = read(watched)
    assert list(kind.failed) == [f"Error{number}" for number in range(MAX_DISTINCT)] + [OTHER]
    assert kind.failed[OTHER] == 10
    assert sum(kind.failed.values()) == kind.received == 60


def test_types_of_equal_value_are_one_type_whatever_class_they_are_of() -> None:
    watched = recorder()
    other = make_enum("Other", {"A": "kind_1"})
    for kind in (KINDS[1], other.A, "kind_1", SimpleNamespace(value="kind_1")):
        pass_through(watched, message(kind))
    assert [(kind.message_type, kind.processed) for kind in read(watched)] == [("kind_1", 4)]


def test_a_type_whose_value_can_not_be_looked_up_is_counted_all_the_same() -> None:
    watched = recorder()
    strange = make_enum("Strange", {"LIST": [1, 2], "NUMBER": 5})
    for kind in (strange.LIST, strange.NUMBER, strange.LIST, 5):
        pass_through(watched, message(kind))
    assert [(kind.message_type, kind.processed) for kind in read(watched)] == [("[1, 2]", 2), ("5", 2)]


def test_a_message_of_the_same_address_as_a_lost_one_ends_the_lost_one() -> None:
    watched, item = recorder(), message()
    for _ in range(3):
        watched.arrived(item)
        watched.left(item, nobody, own_loop=True)
    flight = watched.started(item)
    assert flight is not None
    watched.processed(flight.record, flight.taken_at, item)
    (kind,) = read(watched)
    assert (kind.received, kind.failed, kind.processed, kind.in_flight) == (3, {OTHER: 2}, 1, 0)


def test_messages_taken_together_and_worked_off_in_order_are_all_processed() -> None:
    async def run() -> None:
        watched, items = recorder(), [message() for _ in range(5)]
        task = asyncio.current_task()
        assert task is not None
        for item in items:
            watched.arrived(item)
        for item in items:
            watched.left(item, weakref.ref(task), own_loop=True)
        for item in items:
            flight = watched.started(item)
            assert flight is not None
            watched.processed(flight.record, flight.taken_at, item)
        (kind,) = read(watched)
        assert (kind.processed, kind.failed, kind.in_flight) == (5, {}, 0)

    asyncio.run(run())


def test_a_message_that_never_came_from_the_inbox_has_no_flight() -> None:
    watched = recorder()
    item = message()
    assert watched.started(item) is None
    assert watched.retry(item) is None


def test_a_message_under_way_is_not_started_again() -> None:
    watched, item = recorder(), message()
    watched.arrived(item)
    watched.left(item, nobody, own_loop=True)
    assert not watched.is_in_work
    flight = watched.started(item)
    assert flight is not None
    assert watched.is_in_work
    assert watched.started(item) is None
    assert watched.retry(item) is None  # the first attempt
    watched.attempt_failed(flight.record, item, ValueError())
    assert watched.retry(item) is not None
    assert watched.retry(item) is None  # an attempt within an attempt
    assert read(watched)[0].retries == {"ValueError": 1}


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()])
def test_cancelled_work_is_dropped_and_has_no_duration(error: BaseException) -> None:
    watched = recorder()
    pass_through(watched, message(), error)
    (kind,) = read(watched)
    assert (kind.failed, kind.dropped, kind.process.count) == ({}, {"cancelled": 1}, 0)


def test_letting_go_drops_what_waits_and_coming_back_goes_on() -> None:
    clock = Clock()
    watched = recorder(clock=clock)
    for kind in (KINDS[1], KINDS[1], KINDS[2]):
        watched.arrived(message(kind))
    watched.let_go()
    assert watched.departed_at == clock.now
    assert [(kind.queued, kind.dropped) for kind in read(watched)] == [
        (0, {"unregistered": 2}), (0, {"unregistered": 1}),
    ]  # fmt: skip
    watched.come_back()
    assert watched.departed_at is None
    watched.is_there(message(KINDS[1]))
    watched.let_go()
    assert [(kind.received, kind.dropped) for kind in read(watched)] == [
        (3, {"unregistered": 3}), (1, {"unregistered": 1}),
    ]  # fmt: skip


def test_a_payload_that_fails_to_be_measured_is_still_a_message_received() -> None:
    watched, item = recorder(size_sample_every=1), message()
    item.payload = object()
    watched.arrived(item)
    (kind,) = read(watched)
    assert (kind.received, kind.size.count) == (1, 0)


def test_the_orchestrators_undeliverable_series_are_bounded() -> None:
    watched = OrchestratorRecorder("name")
    for kind in KINDS:
        watched.routed_one(message(kind))
        watched.undeliverable_one(message(kind), "expired")
    assert len(watched.routed) == len(watched.undeliverable) == MAX_DISTINCT + 1
    assert watched.routed[OTHER] == watched.undeliverable[OTHER, "expired"] == 10


def test_operations_are_bounded_for_each_agent_and_for_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = OperationRecorder()
    for number in range(60):
        watched.measured("a", "A", f"operation {number}", 1.0)
    assert len(watched.durations) == MAX_DISTINCT + 1
    assert sum(watched.durations["a", "A", OTHER].counts) == 10
    monkeypatch.setattr(_recorder, "MAX_OPERATIONS", MAX_DISTINCT + 2)
    for name in ("b", "c", "d"):
        watched.measured(name, None, "transcribe", 1.0)
    watched.measured("b", None, "transcribe", 1.0)
    assert sum(watched.durations["b", None, "transcribe"].counts) == 2
    assert sum(watched.durations[OTHER, None, OTHER].counts) == 2
    assert len(watched.durations) == MAX_DISTINCT + 3


def test_operations_of_an_agent_that_is_gone_are_added_to_those_of_others_that_went_before() -> None:
    watched = OperationRecorder()
    for name in ("a", "b", "a"):
        watched.measured(name, None, "transcribe", 1.0)
    a, b, retired = ((agent_id, None, "transcribe") for agent_id in ("a", "b", RETIRED))
    assert watched.retire("a") == {a: retired}
    assert watched.retire("nobody") == {}
    assert {key: sum(buckets.counts) for key, buckets in watched.durations.items()} == {b: 1, retired: 2}
    watched.measured("a", None, "transcribe", 1.0)
    assert sum(watched.durations[a].counts) == 1
    watched.retire("a")
    assert (sum(watched.durations[retired].counts), watched.durations[retired].sum) == (3, 3.0)


def test_what_is_kept_of_types_and_messages_does_not_grow_with_either() -> None:
    watched = recorder()
    for number in range(2_000):
        pass_through(watched, message(f"kind {number}"))
        pass_through(watched, message(KINDS[number % 60]))
    assert len(watched.records) == MAX_DISTINCT + 1
    assert len(watched.by_type) <= MAX_DISTINCT
    assert (len(watched.waiting), watched.unstarted, watched.retrying) == (0, {}, {})


def test_a_state_operation_that_succeeds_is_never_an_error_however_many_errors_there_were() -> None:
    told, owner = Told(), StateOwner()
    owner.observers = (told,)
    watched = StateRecorder("memory", owner)
    for number in range(60):
        watched.operated("write", 0.5, type(f"Error{number}", (Exception,), {})())
    told.told.clear()
    watched.operated("read", 0.25, None)
    watched.operated("write", 0.25, OSError())
    assert told.told == [("operated", "memory", "read", None, 0.25), ("operated", "memory", "write", OTHER, 0.25)]
    assert watched.durations["read", None].sum == 0.25
    assert sum(watched.durations["write", OTHER].counts) == 11


def test_messages_passed_over_are_given_up_as_soon_as_a_later_one_begins() -> None:
    watched, items = recorder(), [message() for _ in range(3)]
    for item in items:
        watched.arrived(item)
    for item in items:
        watched.left(item, nobody, own_loop=True)
    assert watched.started(items[1]) is not None
    (kind,) = read(watched)
    assert (kind.failed, kind.in_flight, watched.in_hand) == ({OTHER: 1}, 2, 2)


def test_nothing_is_kept_of_messages_in_an_inbox_that_is_let_go() -> None:
    watched = recorder()
    watched.arrived(message())
    assert len(watched.waiting) == 1
    watched.let_go()
    assert len(watched.waiting) == 0


def test_what_another_recorder_counted_is_added_up_and_nothing_is_left_open() -> None:
    watched, kept = recorder(), recorder()
    items = [message() for _ in range(5)]
    watched.is_there(items[0])
    for item in items[1:]:
        watched.arrived(item)
    for item in items[:3]:
        watched.left(item, nobody, own_loop=True)
    flight = watched.started(items[1])  # the first is given up
    assert flight is not None
    watched.processed(flight.record, flight.taken_at, items[1])
    watched.sent(message())
    watched.undeliverable(message(), "expired")
    before = read(watched)[0]
    assert (before.queued, before.in_flight, before.failed) == (2, 1, {OTHER: 1})
    for times in (1, 2):
        kept.absorb(watched)
        (kind,) = read(kept)
        assert (kind.received, kind.processed, kind.sent, kind.undeliverable) == (
            5 * times, times, times, {"expired": times},
        )  # fmt: skip
        assert (kind.failed, kind.dropped) == ({OTHER: 2 * times}, {"unregistered": 2 * times})
        assert (kind.queued, kind.in_flight, kept.in_hand) == (0, 0, 0)
        assert (kind.wait.count, kind.process.count) == (2 * times, times)


def test_the_wait_of_a_traced_message_that_is_given_up_is_told_as_well() -> None:
    clock, told = Clock(), Told()
    watched = recorder(clock=clock, size_sample_every=0)
    watched.observers = (told,)
    watched.trace(lambda _message, _size_bytes: None)
    lost, item = message(), message()
    for one in (lost, item):
        watched.arrived(one)
    clock.advance(2.0)
    watched.left(lost, nobody, own_loop=True)
    watched.left(item, nobody, own_loop=True)
    assert told.told == []
    watched.started(item)
    assert told.told == [("waited", "plain", 2.0)]
