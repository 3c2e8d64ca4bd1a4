"""Reading from other threads: every reading adds up, whenever it is made."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amptalk_otel import AgentReading, Instrumentation, instrument_orchestrator
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._hooks._inbox import Inbox
from amptalk_otel._reading import oldest_age_s, read_types
from amptalk_otel._waiting import Arrival, ByMessage
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator
from tests.support import (
    CONFIG,
    Clock,
    Key,
    Scripted,
    assert_balanced,
    counts,
    hooked,
    in_loop,
    note,
    provider_and_reader,
    series,
    settle,
)

MESSAGES = 20_000
PARTS = ("processed", "failed", "dropped")


class Varied(Scripted):
    """Succeeds mostly, fails now and then, needs a second attempt now and then."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.number = 0

    async def process_message(self, message: Message) -> None:
        self.number += 1
        if self.number % 7 == 0:
            raise ValueError
        if self.number % 11 == 0:
            raise ConnectionError
        if self.number % 5 == 0:
            await asyncio.sleep(0)


@contextmanager
def switching_often() -> Iterator[None]:
    """Threads take turns every few hundred bytecodes."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(0.00002)
    try:
        yield
    finally:
        sys.setswitchinterval(former)


async def disturb(orchestrator: Orchestrator, agents: list[Varied], put: int) -> None:
    """50 messages more, and now and then something out of the ordinary."""
    for number in range(50):
        agents[number % 2].input_queue.put_nowait(note(MessageType.COMMAND if number % 3 else MessageType.HEARTBEAT))
    if put % 200 == 0:
        agents[0].input_queue.get_nowait()  # somebody else
    if put % 1_000 == 0:
        await agents[1].stop()
        await agents[1].start()
    if put % 4_000 == 0:
        orchestrator.unregister_agent("a")
        orchestrator.register_agent(agents[0])
    await settle(60)


def read_while_running(read: Callable[[Instrumentation, Any], list[str]], *, at_least: int) -> tuple[int, list[str]]:
    """Run the program and read it from another thread without a pause; what was wrong in any reading."""
    orchestrator = Orchestrator(name="town")
    provider, reader = provider_and_reader()
    instrumentation: list[Instrumentation] = []
    wrong: list[str] = []
    readings, ended = 0, threading.Event()

    def look() -> None:
        nonlocal readings
        while not ended.is_set():
            wrong.extend(read(instrumentation[0], reader))
            readings += 1

    looking = threading.Thread(target=look)

    async def run() -> None:
        agents = [Varied(agent_id=agent_id, name=agent_id) for agent_id in "ab"]
        for agent in agents:
            orchestrator.register_agent(agent)
        instrumentation.append(instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider))
        await orchestrator.start()
        looking.start()
        put = 0
        while put < MESSAGES or readings < at_least:
            put += 50
            await disturb(orchestrator, agents, put)
        await orchestrator.stop()

    try:
        with switching_often():
            asyncio.run(run())
    finally:
        ended.set()
        looking.join(30)
        for handle in instrumentation:
            handle.shutdown()
        provider.shutdown()
    return readings, wrong


def test_every_reading_made_while_20_000_messages_pass_adds_up() -> None:
    def read(instrumentation: Instrumentation, _reader: Any) -> list[str]:
        return [text for reading in instrumentation.read() if (text := _unbalanced(reading))]

    readings, wrong = read_while_running(read, at_least=50)
    assert readings >= 50
    assert wrong == []


def _unbalanced(reading: AgentReading) -> str:
    try:
        assert_balanced(reading)
    except AssertionError as error:
        return str(error)
    return ""


def test_every_collection_made_while_20_000_messages_pass_adds_up() -> None:
    def read(_instrumentation: Instrumentation, reader: Any) -> list[str]:
        found = series(reader)
        return [text for agent_id in "ab" if (text := _unbalanced_series(found, agent_id))]

    readings, wrong = read_while_running(read, at_least=50)
    assert readings >= 50
    assert wrong == []


def _unbalanced_series(found: dict[Key, Any], agent_id: str) -> str:
    def total(name: str) -> int:
        return sum(
            value
            for (metric, attributes), value in found.items()
            if metric == f"amptalk.agent.{name}" and ("agent.id", agent_id) in attributes
        )

    received, waiting = total("messages.received"), total("queue.size")
    parts = {part: total(f"messages.{part}") for part in (*PARTS, "in_flight")}
    return "" if received == sum(parts.values()) + waiting else f"{received} received, {waiting} waiting, {parts}"


# -- what a reading does when it is disturbed ----------------------------------------------------------


def message(kind: str = "plain") -> Any:
    return Message(message_type=kind)  # type: ignore[arg-type]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that readers made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def test_a_reading_caught_between_putting_and_counting_is_made_again(pauses: list[float]) -> None:
    watched, late = AgentRecorder("id", "name"), message()
    lengths = iter([1, 1, 1, 1])

    def queue_size() -> int:
        length = next(lengths)
        if len(pauses) == 2:
            watched.arrived(late)  # the writer goes on
        return length

    types, size, _moment = read_types(watched, queue_size)
    assert (size, types[0].received, len(pauses)) == (1, 1, 4 - 1)


def test_a_reading_that_never_comes_to_rest_gives_up_and_tells_the_real_length(pauses: list[float]) -> None:
    watched = AgentRecorder("id", "name")
    watched.arrived(message())
    for most_s in (0.1001, 0.0101, 0.0101):  # what is known to disagree is not waited for once more
        types, size, _moment = read_types(watched, lambda: 0)
        assert (size, types[0].received) == (0, 1)
        assert 0.01 <= sum(pauses) <= most_s
        pauses.clear()
    watched.arrived(message())
    read_types(watched, lambda: 0)
    assert sum(pauses) > 0.09


def test_an_agent_that_is_let_go_while_it_is_read_adds_up_all_the_same(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Scripted()
    for _ in range(3):
        agent.input_queue.put_nowait(note())
    with hooked(agent) as hook:
        size = Inbox.size

        def let_go_meanwhile(inbox: Inbox) -> int | None:
            length = size(inbox)
            monkeypatch.setattr(Inbox, "size", size)
            hook.let_go()
            return length

        monkeypatch.setattr(Inbox, "size", let_go_meanwhile)
        assert counts(hook.read()) == {"received": 3, "dropped": {"unregistered": 3}}
        assert len(pauses) == 1


def test_an_unhooked_inbox_has_no_length_to_agree_with(pauses: list[float]) -> None:
    assert read_types(AgentRecorder("id", "name"), lambda: None)[:2] == ((), 0)
    assert pauses == []


@in_loop
async def test_an_inbox_emptied_behind_our_back_is_told_as_empty(pauses: list[float]) -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(note())
        agent.input_queue._queue.clear()  # type: ignore[attr-defined]
        assert hook.read().queue_size == 0


@in_loop
async def test_on_the_loops_own_thread_nothing_is_waited_for(pauses: list[float]) -> None:
    orchestrator = Orchestrator(name="town")
    agents = [Scripted(agent_id=str(number)) for number in range(20)]
    for agent in agents:
        orchestrator.register_agent(agent)
    provider, _reader = provider_and_reader()
    with instrument_orchestrator(orchestrator, config=CONFIG, meter_provider=provider) as instrumentation:
        for agent in agents:
            agent.input_queue.put_nowait(note())
            agent.input_queue._queue.clear()  # type: ignore[attr-defined]
        assert [(reading.queue_size, reading.unaccounted) for reading in instrumentation.read()] == [(0, 1)] * 20
        assert pauses == []
        await asyncio.to_thread(instrumentation.read)
        assert pauses != []
    provider.shutdown()


@in_loop
async def test_on_a_loops_thread_a_torn_reading_is_made_again_at_once(pauses: list[float]) -> None:
    watched, late = AgentRecorder("id", "name"), message()
    lengths = iter([1, 1])

    def queue_size() -> int:
        length = next(lengths)
        if not watched.records:
            watched.arrived(late)  # the writer, on another loop, went on in between
        return length

    types, size, _moment = read_types(watched, queue_size)
    assert (size, types[0].received, pauses) == (1, 1, [])


def test_the_age_of_the_oldest_is_told_while_the_inbox_changes() -> None:
    watched, clock = AgentRecorder("id", "name"), Clock()
    watched.clock = clock
    waiting = [message() for _ in range(3)]
    for item in waiting:
        watched.arrived(item)
        clock.advance(1.0)
    assert oldest_age_s(watched) == 3.0

    class Changing(dict[int, Arrival]):
        def values(self) -> Any:
            iterator = iter(dict.values(self))
            if len(self) < 6:
                dict.update(self, {len(self): (watched.records[0], clock.now, None)})
            return iterator

    assert isinstance(watched.waiting, ByMessage)
    watched.waiting._arrivals = Changing(watched.waiting._arrivals)
    assert oldest_age_s(watched) == 3.0


def test_the_stamp_of_a_type_that_has_not_changed_is_the_same_object() -> None:
    watched = AgentRecorder("id", "name")
    for kind in ("still", "busy"):
        watched.arrived(message(kind))
    (still, busy), *_ = read_types(watched, lambda: None)
    watched.arrived(message("busy"))
    (still_again, busy_again), *_ = read_types(watched, lambda: None)
    assert still_again.stamp is still.stamp
    assert still_again == still
    assert busy_again.stamp is not busy.stamp
    assert (busy.received, busy_again.received) == (1, 2)


def test_what_is_kept_from_one_reading_to_the_next_is_nothing_to_the_garbage_collector() -> None:
    watched = AgentRecorder("id", "name")
    for kind in ("one", "other"):
        watched.arrived(message(kind))
        watched.undeliverable(message(kind), "expired")
    read_types(watched, lambda: None)
    for _ in range(3):  # a tuple is let go once those inside are
        gc.collect()
    assert [gc.is_tracked(stamp) for stamp in watched.last_read] == [False, False]


def test_an_empty_inbox_has_no_oldest_message() -> None:
    assert oldest_age_s(AgentRecorder("id", "name")) is None


def test_what_is_written_together_is_not_read_before_all_of_it_is_there(pauses: list[float]) -> None:
    watched = AgentRecorder("id", "name")
    with watched._at_once():
        read_types(watched, lambda: None)
    assert len(pauses) >= 50
    pauses.clear()
    read_types(watched, lambda: None)
    assert pauses == []
