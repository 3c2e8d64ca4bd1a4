"""Messages that nobody can account for: none while all is right, and told as soon as a hook is cheated or broken."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from amptalk_otel import Instrumentation, instrument_orchestrator
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._hooks._processing import Processing
from amptalk_otel._labels import RETIRED
from amptalk_otel._reading import read_types
from amptalk_otel._under_way import IN_WORK, NOTHING, nobody
from amptalk_otel.demo.runtime import Orchestrator
from tests.support import CONFIG, Scripted, hold, hooked, in_loop, note, provider_and_reader, series, settle

UNACCOUNTED = "amptalk.agent.messages.unaccounted"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that readers made, without making them."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def store_of(agent: Scripted) -> deque[Any]:
    """What lies in the inbox, to be changed behind the hooks' back."""
    store: deque[Any] = agent.input_queue._queue  # type: ignore[attr-defined]
    return store


# -- the inbox does not agree --------------------------------------------------------------------------


@in_loop
async def test_messages_slipped_into_the_store_are_too_many_until_they_are_taken() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        store_of(agent).extend([note(), note()])
        agent.input_queue._unfinished_tasks += 2  # type: ignore[attr-defined]  # or the loop would end in `task_done`
        assert (hook.read().unaccounted, hook.read().queue_size) == (-2, 2)
        agent.input_queue.put_nowait(note())
        assert hook.read().unaccounted == -2
        await agent.start()
        await settle(25)
        reading = hook.read()
        assert (reading.unaccounted, reading.received, reading.processed) == (0, 3, 3)
        await agent.stop()


@in_loop
async def test_messages_removed_from_the_store_are_missing_until_the_next_is_taken() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        for _ in range(3):
            agent.input_queue.put_nowait(note())
        store_of(agent).clear()
        assert (hook.read().unaccounted, hook.read().queue_size) == (3, 0)
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        reading = hook.read()
        assert (reading.unaccounted, reading.dropped, reading.processed) == (0, 3, 1)
        await agent.stop()


@in_loop
async def test_what_is_removed_from_an_inbox_in_another_order_stays_missing() -> None:
    agent = Scripted()
    agent.input_queue = asyncio.PriorityQueue()
    with hooked(agent) as hook:
        for number in range(3):
            agent.input_queue.put_nowait((number, note()))  # type: ignore[arg-type]
        store_of(agent).clear()
        assert hook.read().unaccounted == 3


@in_loop
async def test_a_message_slipped_into_an_inbox_in_another_order_is_one_too_many_until_it_is_taken() -> None:
    agent = Scripted()
    agent.input_queue = asyncio.LifoQueue()
    with hooked(agent) as hook:
        store_of(agent).append(note())
        assert hook.read().unaccounted == -1
        agent.input_queue.get_nowait()
        reading = hook.read()
        assert (reading.unaccounted, reading.received, reading.dropped) == (0, 1, 1)


@pytest.mark.parametrize(("seam", "unaccounted"), [("_put", -1), ("_get", 1)])
@in_loop
async def test_an_inbox_of_which_a_wrapper_was_taken_off_does_not_add_up(seam: str, unaccounted: int) -> None:
    agent = Scripted(hold if seam == "_put" else None)
    with hooked(agent) as hook:
        await agent.start()
        await settle()
        if seam == "_get":
            agent.input_queue.put_nowait(note())
            delattr(agent.input_queue, seam)
            await settle()
        else:
            delattr(agent.input_queue, seam)
            agent.input_queue.put_nowait(note())
        assert hook.read().unaccounted == unaccounted
        await agent.stop()


# -- what is in hand does not agree --------------------------------------------------------------------


@in_loop
async def test_a_message_whose_end_is_not_counted_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Scripted(ValueError())

    def forget(processing: Processing, *_about: Any) -> None:
        processing._recorder.next_message, processing._recorder.also_in_work = NOTHING, 0

    monkeypatch.setattr(Processing, "failed", forget)
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        reading = hook.read()
        assert (reading.unaccounted, reading.in_flight, reading.failed) == (1, 0, 0)
        await agent.stop()


@in_loop
async def test_a_message_that_is_counted_and_never_let_go_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Scripted(ValueError())
    monkeypatch.setattr(AgentRecorder, "_end", lambda _recorder, _message, _seconds: None)
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        reading = hook.read()
        assert (reading.unaccounted, reading.in_flight, reading.failed) == (-1, 1, 1)
        await agent.stop()


@pytest.mark.parametrize("disturb", ["hand", "inbox"])
def test_what_is_only_caught_between_two_writes_is_not_told(pauses: list[float], disturb: str) -> None:
    watched, item = AgentRecorder("id", "name"), note()
    watched.arrived(item)
    length = 1
    if disturb == "hand":
        watched.left(item, nobody, own_loop=True)
        watched.next_message, length = NOTHING, 0

    def queue_size() -> int:
        if len(pauses) == 40:  # the writer, who was interrupted, goes on
            if disturb == "inbox":
                watched.left(item, nobody, own_loop=True)
            watched.next_message = IN_WORK
        return 0 if disturb == "inbox" else length

    types, queued, moment = read_types(watched, queue_size)
    assert (types[0].received, queued, moment.in_hand, len(pauses)) == (1, 0, 1, 40 + (disturb == "inbox"))


def test_what_can_not_be_hooked_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    agent = Scripted()
    agent.input_queue = deque()  # type: ignore[assignment]
    with hooked(agent) as hook:
        store: Any = agent.input_queue
        store.append(note())
        assert (hook.read().received, hook.read().unaccounted) == (0, 0)
    assert len(caplog.records) == 1


# -- agents that left ----------------------------------------------------------------------------------


@contextmanager
def town(*agents: Scripted, **settings: Any) -> Iterator[tuple[Orchestrator, Instrumentation, Callable[[str], Any]]]:
    """An orchestrator that is told, and a metric of it by agent."""
    orchestrator, (provider, reader) = Orchestrator(name="town"), provider_and_reader()
    for agent in agents:
        orchestrator.register_agent(agent)
    config = CONFIG.with_changes(**settings)

    def told(metric: str) -> dict[str, int]:
        return {
            dict(attributes)["agent.id"]: value
            for (name, attributes), value in series(reader).items()
            if name == metric
        }

    with instrument_orchestrator(orchestrator, config=config, meter_provider=provider) as handle:
        yield orchestrator, handle, told
    provider.shutdown()


@in_loop
async def test_an_agent_that_left_leaves_nothing_unaccounted() -> None:
    agent = Scripted(hold, agent_id="a")
    with town(agent) as (orchestrator, _handle, told):
        await agent.start()
        for _ in range(3):
            await agent.enqueue_message(note())
        await settle()
        orchestrator.unregister_agent("a")
        agent.input_queue.put_nowait(note())
        assert told(UNACCOUNTED) == {"a": 0}
        assert told("amptalk.agent.messages.in_flight") == {"a": 1}
        await agent.stop()
        assert told(UNACCOUNTED) == {"a": 0}


@in_loop
async def test_what_was_missing_of_an_agent_that_left_stays_missing() -> None:
    agents = [Scripted(hold, agent_id=agent_id) for agent_id in "ab"]
    with town(*agents, departed_agents_linger_s=1e-9) as (orchestrator, handle, told):
        for agent in agents:
            await agent.start()
            await agent.enqueue_message(note())
        await settle()
        watch = handle._watch
        assert watch is not None
        next(iter(watch._agents.values())).hook.recorder.next_message = NOTHING
        assert told(UNACCOUNTED) == {"a": 1, "b": 0}
        for agent_id in "ab":
            orchestrator.unregister_agent(agent_id)
        for agent in agents:
            agent.tasks[0].cancel()
        await settle()
        told(UNACCOUNTED)
        assert told(UNACCOUNTED) == {RETIRED: 1}
        for agent in agents:
            await agent.stop()


@pytest.mark.parametrize("settings", [{"max_agents": 1}, {"agent_grouping": "class"}])
@in_loop
async def test_agents_of_one_series_are_missed_together(settings: dict[str, Any]) -> None:
    agents = [Scripted(agent_id=agent_id) for agent_id in "abc"]
    with town(*agents, **settings) as (_orchestrator, _handle, told):
        for agent in agents:
            agent.input_queue.put_nowait(note())
            store_of(agent).append(note())
        assert sum(told(UNACCOUNTED).values()) == -3
