"""Every way into an inbox and out of it is counted once."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from amptalk_otel.demo.runtime import (
    Agent,
    CommunicationConfig,
    CommunicationMode,
    Message,
    MessageType,
    Orchestrator,
)
from tests.support import Clock, Scripted, assert_balanced, counts, handle, hold, hooked, in_loop, note, of_type, settle

if TYPE_CHECKING:
    from typing_extensions import Self


class Tupled(Scripted):
    """Waits for (priority, number, message) instead of messages."""

    async def _message_loop(self) -> None:
        while self.is_running:
            item: Any = await self.input_queue.get()
            try:
                await self._process_with_retry(item[-1])
            finally:
                self.input_queue.task_done()


class Patient(Scripted):
    """Waits for each message with a time limit."""

    async def _message_loop(self) -> None:
        while self.is_running:
            message = await asyncio.wait_for(self.input_queue.get(), 60)
            try:
                await self._process_with_retry(message)
            except OSError:
                self.stats.record_message_failed("OSError")
            finally:
                self.input_queue.task_done()


async def enqueue(agent: Agent, message: Message) -> None:
    await agent.enqueue_message(message)


async def put(agent: Agent, message: Message) -> None:
    await agent.input_queue.put(message)


async def put_nowait(agent: Agent, message: Message) -> None:
    agent.input_queue.put_nowait(message)


async def put_in_time(agent: Agent, message: Message) -> None:
    await asyncio.wait_for(agent.input_queue.put(message), 5)


async def send(agent: Agent, message: Message) -> None:
    sender = Scripted(agent_id="sender")
    sender.connect(agent)
    message.target_agent_id = agent.agent_id
    assert await sender.send_message(message)


async def send_as_bytes(agent: Agent, message: Message) -> None:
    sender = Scripted(communication_config=CommunicationConfig(CommunicationMode.MEMORY_CHANNEL))
    sender.connect(agent)
    message.target_agent_id = agent.agent_id
    assert await sender.send_message(message)


# -- in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [enqueue, put, put_nowait, put_in_time, send, send_as_bytes])
@in_loop
async def test_a_message_is_received_once_whichever_way_it_comes(way: Callable[..., Awaitable[None]]) -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        await way(agent, note(MessageType.NLP_REQUEST))
        assert counts(hook.read()) == {"received": 1, "queued": 1}
        clock.advance(2.0)
        assert hook.read().oldest_age_s == 2.0
        await handle(agent)
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        assert of_type(hook.read(), MessageType.NLP_REQUEST).wait.sum == 2.0
        assert hook.read().oldest_age_s is None
    assert len(agent.seen) == 1


@in_loop
async def test_a_message_that_lets_nobody_look_at_it_is_received_as_it_comes() -> None:
    class Hostile:
        @property
        def message_type(self) -> MessageType:
            raise RuntimeError("nobody looks at me")

    agent = Scripted()
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(Hostile())  # type: ignore[arg-type]
        assert counts(hook.read()) == {"received": 1, "queued": 1}
        assert [kind.message_type for kind in hook.read().types] == ["_OTHER"]


@in_loop
async def test_a_message_that_a_full_inbox_refuses_is_not_received() -> None:
    agent = Scripted()
    agent.input_queue = asyncio.Queue(1)
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(note())
        with pytest.raises(asyncio.QueueFull):
            agent.input_queue.put_nowait(note())
        assert counts(hook.read()) == {"received": 1, "queued": 1}


@in_loop
async def test_a_message_that_waits_for_room_is_received_when_there_is_room() -> None:
    agent, clock = Scripted(), Clock()
    agent.input_queue = asyncio.Queue(1)
    with hooked(agent, clock) as hook:
        agent.input_queue.put_nowait(note(MessageType.COMMAND))
        waiting = asyncio.create_task(agent.enqueue_message(note(MessageType.HEARTBEAT)))
        await settle()
        clock.advance(3.0)
        assert counts(hook.read()) == {"received": 1, "queued": 1}
        await agent.start()
        await waiting
        await settle()
        await agent.stop()
        assert counts(hook.read()) == {"received": 2, "processed": 2, "waits": 2, "works": 2}
        assert of_type(hook.read(), MessageType.COMMAND).wait.sum == 3.0
        assert of_type(hook.read(), MessageType.HEARTBEAT).wait.sum == 0.0  # waiting at the door is not waiting inside


@in_loop
async def test_a_message_whose_sender_gives_up_at_a_full_inbox_is_not_received() -> None:
    agent = Scripted()
    agent.input_queue = asyncio.Queue(1)
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(note())
        waiting = asyncio.create_task(agent.enqueue_message(note()))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert counts(hook.read()) == {"received": 1, "queued": 1}


@in_loop
async def test_broadcast_clones_are_messages_of_their_own_though_they_share_an_id() -> None:
    orchestrator, agents = Orchestrator(), [Scripted(agent_id=name) for name in "abc"]
    for agent in agents:
        orchestrator.register_agent(agent)
    with hooked(agents[0]) as first, hooked(agents[1]) as second, hooked(agents[2]) as third:
        message = note()
        await orchestrator.broadcast_message(message)
        await orchestrator.broadcast_message(message)
        assert len({waiting.message_id for agent in agents for waiting in agent.input_queue._queue}) == 1  # type: ignore[attr-defined]
        for hook in (first, second, third):
            assert counts(hook.read()) == {"received": 2, "queued": 2}
        await handle(agents[1])
        assert counts(second.read()) == {"received": 2, "processed": 2, "waits": 2, "works": 2}
        assert counts(third.read()) == {"received": 2, "queued": 2}


@in_loop
async def test_an_object_that_is_in_the_inbox_twice_is_two_messages() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        message = note()
        agent.input_queue.put_nowait(message)
        clock.advance(1.0)
        agent.input_queue.put_nowait(message)
        agent.input_queue.put_nowait(note(MessageType.HEARTBEAT))
        clock.advance(1.0)
        assert hook.read().oldest_age_s == 2.0
        assert counts(hook.read()) == {"received": 3, "queued": 3}
        await handle(agent)
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
        assert of_type(hook.read(), MessageType.COMMAND).wait.sum == 2.0 + 1.0
        assert hook.read().oldest_age_s is None
        assert len(hook.recorder.waiting) == 0


@in_loop
async def test_the_oldest_age_is_right_when_an_object_was_put_twice() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        message = note()
        for item in (message, message, note(MessageType.HEARTBEAT)):
            agent.input_queue.put_nowait(item)
            clock.advance(1.0)
        agent.input_queue.get_nowait()
        assert hook.read().oldest_age_s == 2.0


@in_loop
async def test_an_object_put_again_before_its_second_turn_waits_as_long_as_it_lay_there() -> None:
    agent, clock, message, waits = Scripted(), Clock(), note(), []
    with hooked(agent, clock) as hook:
        for act in ("put", "put", "get", "put", "get", "get"):
            agent.input_queue.put_nowait(message) if act == "put" else agent.input_queue.get_nowait()
            waits.append(hook.read().wait_histogram.sum)
            clock.advance(1.0)
    assert waits == [0.0, 0.0, 2.0, 2.0, 2.0 + 3.0, 2.0 + 3.0 + 2.0]


@in_loop
async def test_a_handler_may_put_its_own_message_back() -> None:
    async def put_back(message: Message) -> None:
        await agent.input_queue.put(message)

    agent = Scripted(put_back, put_back, None)
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 3, "works": 3}


@in_loop
async def test_one_object_in_two_inboxes_is_counted_at_both() -> None:
    first, second, message = Scripted(), Scripted(OSError(), OSError(), OSError(), OSError()), note()
    with hooked(first) as hook, hooked(second) as other:
        await handle(first, message)
        await handle(second, message)
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
        assert counts(other.read()) == {
            "received": 1, "failed": {"OSError": 1}, "retries": {"OSError": 3}, "waits": 1, "works": 1,
        }  # fmt: skip


# -- kinds of queues -----------------------------------------------------------------------------------


@in_loop
async def test_messages_inside_the_tuples_of_a_priority_queue_are_counted() -> None:
    agent, clock = Tupled(), Clock()
    agent.input_queue = asyncio.PriorityQueue()
    items: list[Any] = [(2, 0, note(MessageType.HEARTBEAT)), (0, 1, note(MessageType.ERROR)), (1, 2, note())]
    agent.input_queue.put_nowait(items[0])
    with hooked(agent, clock) as hook:
        agent.input_queue.put_nowait(items[1])
        clock.advance(1.0)
        agent.input_queue.put_nowait(items[2])
        assert counts(hook.read()) == {"received": 3, "queued": 3}
        assert hook.read().oldest_age_s == 1.0
        await handle(agent)
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 2, "works": 3}
        assert of_type(hook.read(), MessageType.ERROR).wait.sum == 1.0
        assert of_type(hook.read(), MessageType.HEARTBEAT).processed == 1
    assert [message.message_type for message in agent.seen] == [
        MessageType.ERROR, MessageType.COMMAND, MessageType.HEARTBEAT,
    ]  # fmt: skip


class PriorityInbox(asyncio.PriorityQueue):  # type: ignore[type-arg]
    """A priority queue that makes and unmakes its tuples itself."""

    def _put(self, item: Any) -> None:
        super()._put((-item.priority.value, id(item), item))

    def _get(self) -> Any:
        return super()._get()[-1]


@in_loop
async def test_a_queue_that_makes_its_own_tuples_leaves_nothing_in_the_books() -> None:
    agent = Scripted()
    agent.input_queue = PriorityInbox()
    agent.input_queue.put_nowait(note())
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(note())
        assert counts(hook.read()) == {"received": 2, "queued": 2}
        await handle(agent)
        assert counts(hook.read()) == {"received": 2, "processed": 2, "waits": 1, "works": 2}
        assert len(hook.recorder.waiting) == 0


@in_loop
async def test_a_last_in_first_out_queue_keeps_its_order_and_its_times() -> None:
    agent, clock = Scripted(), Clock()
    agent.input_queue = asyncio.LifoQueue()
    with hooked(agent, clock) as hook:
        for kind in (MessageType.COMMAND, MessageType.HEARTBEAT):
            agent.input_queue.put_nowait(note(kind))
            clock.advance(1.0)
        agent.script = [hold]
        await agent.start()
        await settle()
        assert agent.seen[0].message_type is MessageType.HEARTBEAT
        assert hook.read().oldest_age_s == 2.0
        assert counts(hook.read()) == {"received": 2, "in_flight": 1, "queued": 1, "waits": 1}
        await agent.stop()


@in_loop
async def test_a_loop_that_waits_with_a_time_limit_is_the_agents_own() -> None:
    agent = Patient(None, *[OSError()] * 4, None)
    with hooked(agent) as hook:
        await handle(agent, note(), note(), note())
        assert counts(hook.read()) == {
            "received": 3, "processed": 2, "failed": {"OSError": 1}, "retries": {"OSError": 3}, "waits": 3, "works": 3,
        }  # fmt: skip


@in_loop
async def test_a_loop_that_hands_its_messages_to_tasks_is_counted_message_by_message() -> None:
    class Concurrent(Scripted):
        async def _message_loop(self) -> None:
            async with _TaskSet() as workers:
                while self.is_running:
                    message = await self.input_queue.get()
                    workers.start(self._process_with_retry(message))

    agent, gate = Concurrent(), asyncio.Event()

    async def wait(_message: Message) -> None:
        await gate.wait()

    agent.script = [wait, wait, wait]
    with hooked(agent) as hook:
        await agent.start()
        for _ in range(3):
            await agent.enqueue_message(note())
            await settle()
        assert counts(hook.read()) == {"received": 3, "in_flight": 3, "waits": 3}
        gate.set()
        await settle()
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
        await agent.stop()


class _TaskSet:
    async def __aenter__(self) -> Self:
        self._tasks: list[asyncio.Task[Any]] = []
        return self

    def start(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def __aexit__(self, *_error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# -- there before us -----------------------------------------------------------------------------------


@in_loop
async def test_messages_that_waited_before_us_are_received_and_have_no_wait_time() -> None:
    agent, clock = Scripted(), Clock()
    for kind in (MessageType.COMMAND, MessageType.HEARTBEAT):
        await agent.enqueue_message(note(kind))
    with hooked(agent, clock) as hook:
        assert counts(hook.read()) == {"received": 2, "queued": 2}
        assert hook.read().oldest_age_s is None
        await agent.enqueue_message(note())
        clock.advance(4.0)
        assert hook.read().oldest_age_s == 4.0
        await handle(agent)
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 1, "works": 3}
        assert hook.read().wait_histogram.sum == 4.0


@in_loop
async def test_an_object_that_waited_before_us_and_was_put_again_has_one_wait_time() -> None:
    agent, clock, message = Scripted(), Clock(), note()
    agent.input_queue.put_nowait(message)
    with hooked(agent, clock) as hook:
        agent.input_queue.put_nowait(message)
        clock.advance(1.0)
        assert hook.read().oldest_age_s == 1.0
        agent.input_queue.get_nowait()
        assert counts(hook.read()) == {"received": 2, "dropped": {"taken": 1}, "queued": 1}
        clock.advance(1.0)
        assert hook.read().oldest_age_s == 2.0
        agent.input_queue.get_nowait()
        assert counts(hook.read()) == {"received": 2, "dropped": {"taken": 2}, "waits": 1}
        assert hook.read().wait_histogram.sum == 2.0


# -- taken by others -----------------------------------------------------------------------------------


@in_loop
async def test_a_message_that_somebody_else_takes_is_dropped_as_taken() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(4):
            agent.input_queue.put_nowait(note())
        clock.advance(1.0)
        agent.input_queue.get_nowait()  # by this task
        await asyncio.create_task(_take(agent))  # by another one
        asyncio.get_running_loop().call_soon(agent.input_queue.get_nowait)  # by none at all
        await settle()
        assert counts(hook.read()) == {"received": 4, "dropped": {"taken": 3}, "queued": 1, "waits": 3}
        assert hook.read().wait_histogram.sum == 3.0
        await agent.start()
        await settle()
        await agent.stop()
        assert counts(hook.read()) == {
            "received": 4, "dropped": {"taken": 3}, "processed": 1, "waits": 4, "works": 1,
        }  # fmt: skip


async def _take(agent: Agent) -> Message:
    return await agent.input_queue.get()


def test_a_message_taken_where_no_loop_runs_is_dropped_as_taken() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        agent.input_queue.put_nowait(note())
        agent.input_queue.get_nowait()
        assert counts(hook.read()) == {"received": 1, "dropped": {"taken": 1}, "waits": 1}


@in_loop
async def test_a_message_that_its_own_handler_takes_is_dropped_as_taken() -> None:
    async def drain(_message: Message) -> None:
        agent.input_queue.get_nowait()
        await agent.input_queue.get()

    agent = Scripted(drain)
    for _ in range(4):
        agent.input_queue.put_nowait(note())
    with hooked(agent) as hook:
        await agent.start()
        await settle()
        assert counts(hook.read()) == {"received": 4, "dropped": {"taken": 2}, "processed": 2, "works": 2}
        await agent.stop()


@in_loop
async def test_another_agents_handler_that_takes_a_message_is_somebody_else() -> None:
    victim = Scripted()

    async def steal(_message: Message) -> None:
        victim.input_queue.get_nowait()

    thief = Scripted(steal)
    with hooked(victim) as hook, hooked(thief) as other:
        await victim.enqueue_message(note())
        await handle(thief, note())
        assert counts(hook.read()) == {"received": 1, "dropped": {"taken": 1}, "waits": 1}
        assert counts(other.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}


@in_loop
async def test_somebody_else_who_waits_with_a_time_limit_leaves_nothing_in_flight_for_ever() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        await agent.enqueue_message(note())
        await asyncio.wait_for(agent.input_queue.get(), 5)
        assert_balanced(hook.read())
        await handle_rest(agent, note())
        reading = hook.read()
        assert_balanced(reading)
        assert (reading.received, reading.processed, reading.failed + reading.dropped) == (2, 1, 1)


async def handle_rest(agent: Agent, message: Message) -> None:
    """As `handle`, for an inbox from which somebody took a message without saying `task_done`."""
    await agent.start()
    await agent.enqueue_message(message)
    await settle()
    await agent.stop()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queues can be shut down since Python 3.13")
@in_loop
async def test_an_inbox_that_is_shut_down_at_once_loses_its_messages_to_whoever_did_it() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        for _ in range(3):
            await agent.enqueue_message(note())
        agent.input_queue.shutdown(immediate=True)  # type: ignore[attr-defined,unused-ignore]
        assert counts(hook.read()) == {"received": 3, "dropped": {"taken": 3}, "waits": 3}


@in_loop
async def test_messages_inside_the_tuples_of_a_plain_queue_are_counted_and_measured() -> None:
    agent = Tupled()
    with hooked(agent) as hook:
        await agent.start()
        for number in range(3):
            agent.input_queue.put_nowait((number, note(payload={"text": "x" * 100})))  # type: ignore[arg-type]
        await settle()
        await agent.stop()
        assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
        assert hook.read().size_histogram.sum == len('{"text": ""}') + 100


# -- changed behind our back ---------------------------------------------------------------------------


@in_loop
async def test_messages_cleared_from_the_queue_itself_are_dropped_when_the_next_one_is_taken() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(3):
            agent.input_queue.put_nowait(note())
        clock.advance(10.0)
        agent.input_queue._queue.clear()  # type: ignore[attr-defined]
        agent.input_queue.put_nowait(note(MessageType.HEARTBEAT))
        clock.advance(1.0)
        await agent.start()
        await settle()
        await agent.stop()
        assert counts(hook.read()) == {"received": 4, "dropped": {"taken": 3}, "processed": 1, "waits": 1, "works": 1}
        assert of_type(hook.read(), MessageType.HEARTBEAT).wait.sum == 1.0


@in_loop
async def test_a_queue_that_is_given_another_store_is_followed_there() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        await handle(agent, note())
        agent.input_queue.put_nowait(note())
        agent.input_queue._queue = deque()  # type: ignore[attr-defined]
        agent.input_queue.put_nowait(note())
        clock.advance(2.0)
        await agent.start()
        await settle()
        await agent.stop()
        assert counts(hook.read()) == {"received": 3, "dropped": {"taken": 1}, "processed": 2, "waits": 2, "works": 2}
        assert hook.read().wait_histogram.sum == 2.0


@in_loop
async def test_a_message_slipped_into_the_queue_itself_is_received_when_it_is_taken() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        agent.input_queue._queue.append(note(MessageType.HEARTBEAT))  # type: ignore[attr-defined]
        agent.input_queue.put_nowait(note())
        clock.advance(3.0)
        await agent.start()
        await settle()
        await agent.stop()
        assert counts(hook.read())["received"] == 2
        assert counts(hook.read())["processed"] == 2
        assert of_type(hook.read(), MessageType.COMMAND).wait.sum == 3.0
        assert of_type(hook.read(), MessageType.HEARTBEAT).wait.count == 0


@in_loop
async def test_nothing_in_the_inbox_is_a_message_of_no_type() -> None:
    class Sentinel(Scripted):
        async def _message_loop(self) -> None:
            while (message := await self.input_queue.get()) is not None:
                await self._process_with_retry(message)

    agent = Sentinel()
    with hooked(agent) as hook:
        await agent.start()
        for item in (note(), None):
            agent.input_queue.put_nowait(item)  # type: ignore[arg-type]
        await settle()
        assert counts(hook.read()) == {"received": 2, "processed": 1, "in_flight": 1, "waits": 2, "works": 1}
        await agent.stop()
        await handle_rest(agent, note())
        assert counts(hook.read()) == {
            "received": 3, "processed": 2, "failed": {"_OTHER": 1}, "waits": 3, "works": 2,
        }  # fmt: skip


# -- odd inboxes ---------------------------------------------------------------------------------------


class Pipe:
    """An inbox that is no queue."""

    def __init__(self) -> None:
        self.messages = [note()]

    async def get(self) -> Message:
        return self.messages.pop() if self.messages else await asyncio.Event().wait()  # type: ignore[return-value]

    def task_done(self) -> None:
        """Not interested."""


@in_loop
async def test_an_inbox_that_is_no_queue_costs_one_warning_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Scripted(), Scripted()
    first.input_queue, second.input_queue = Pipe(), Pipe()  # type: ignore[assignment]
    with hooked(first) as hook, hooked(second):
        await first.start()
        await settle()
        await first.stop()
        assert counts(hook.read()) == {}
    assert len(first.seen) == 1
    warnings = [record for record in caplog.records if record.name == "amptalk_otel"]
    assert [(record.levelno, record.getMessage()) for record in warnings] == [
        (logging.WARNING, "an inbox of type Pipe can't be watched: it is no asyncio.Queue")
    ]


@pytest.mark.parametrize("inbox", [None, [], 5])
def test_an_inbox_that_is_nothing_of_the_kind_is_left_alone(inbox: Any) -> None:
    agent = Scripted()
    agent.input_queue = inbox
    with hooked(agent) as hook:
        assert counts(hook.read()) == {}
        assert agent.input_queue is inbox


@in_loop
async def test_an_inbox_that_can_not_be_wrapped_does_not_count_what_waits_in_it() -> None:
    class Sealed(asyncio.Queue[Message]):
        def __setattr__(self, name: str, value: object) -> None:
            if name in ("_put", "_get"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    agent = Scripted()
    agent.input_queue = Sealed()
    agent.input_queue.put_nowait(note())
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {}
    assert len(agent.seen) == 2


@in_loop
async def test_a_new_inbox_is_found_at_the_next_start_and_the_old_ones_messages_are_dropped() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        old = agent.input_queue
        await agent.enqueue_message(note())
        await agent.enqueue_message(note(MessageType.HEARTBEAT))
        agent.input_queue = asyncio.Queue()
        agent.input_queue.put_nowait(note())
        await handle(agent, note())
        assert counts(hook.read()) == {
            "received": 4, "dropped": {"taken": 2}, "processed": 2, "waits": 1, "works": 2,
        }  # fmt: skip
        assert "_put" not in vars(old)
        assert hook.read().oldest_age_s is None


@pytest.mark.parametrize("name", ["_put", "_get"])
@in_loop
async def test_what_somebody_gave_to_all_queues_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = getattr(asyncio.Queue, name), []

    def noted(queue: asyncio.Queue[Message], *items: Message) -> Any:
        calls.append(items)
        return original(queue, *items)

    monkeypatch.setattr(asyncio.Queue, name, noted)
    agent = Scripted()
    agent.input_queue = asyncio.Queue()  # the outbox is one, too
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}
    assert len(calls) == 1


class TwoLoops(Scripted):
    """Takes messages in two tasks, and looks at each for a while before it works on it."""

    async def start(self) -> None:
        await super().start()
        self.tasks.append(asyncio.create_task(self._message_loop()))

    async def _message_loop(self) -> None:
        while self.is_running:
            message = await self.input_queue.get()
            for _ in range(5 if message.message_type is MessageType.HEARTBEAT else 1):
                await asyncio.sleep(0)
            await self._process_with_retry(message)


@in_loop
async def test_a_message_that_another_task_of_the_agent_has_taken_is_not_given_up() -> None:
    agent = TwoLoops()
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note(MessageType.HEARTBEAT))
        await agent.enqueue_message(note(MessageType.COMMAND))
        await settle()
        assert [message.message_type for message in agent.seen] == [MessageType.COMMAND, MessageType.HEARTBEAT]
        assert counts(hook.read()) == {"received": 2, "processed": 2, "waits": 2, "works": 2}
        await agent.stop()


# -- what is taken off ---------------------------------------------------------------------------------


class HalfOpen(asyncio.Queue[Message]):
    """Lets nobody cover how messages are taken."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_get":
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_an_inbox_of_which_only_half_can_be_covered_is_not_covered_at_all(caplog: pytest.LogCaptureFixture) -> None:
    agent = Scripted()
    agent.input_queue = HalfOpen()
    with hooked(agent) as hook:
        assert "_put" not in vars(agent.input_queue)
        agent.input_queue.put_nowait(note())
        assert counts(hook.read()) == {}
    assert len(caplog.records) == 1


@in_loop
async def test_what_is_taken_below_another_wrapper_is_not_counted_once_the_agent_is_let_go() -> None:
    done = asyncio.Event()

    async def work(_message: Message) -> None:
        await done.wait()

    agent = Scripted(work, hold)
    queue: Any = agent.input_queue
    with hooked(agent) as hook:
        await agent.start()
        for _ in range(2):
            await agent.enqueue_message(note())
        await settle()
        queue._get = partial(queue._get)
        hook.let_go()
        done.set()
        await settle()
        assert queue.empty()
        assert counts(hook.read()) == {
            "received": 2, "processed": 1, "dropped": {"unregistered": 1}, "waits": 1, "works": 1,
        }  # fmt: skip
        await agent.stop()
