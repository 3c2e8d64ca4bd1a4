"""Where an agent's time goes, to the second: each way that a message and an agent can take, on a clock that is told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from amptalk_otel import AgentReading
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel._reading import read_types
from amptalk_otel._timesheet import TimeReading, Timesheet
from amptalk_otel._traces import message_tracer
from amptalk_otel._under_way import NOTHING, nobody
from amptalk_otel.adapters import AgentAdapter, CoreAdapter, FrameworkAdapter
from amptalk_otel.demo.runtime import Message
from tests.core_runtime import CoreAgent, CoreMessage, Status
from tests.support import CONFIG, Clock, Scripted, handle, hooked, in_loop, note, settle
from tests.unit.test_reading import switching_often


class Gated(Scripted):
    """Works on a message until it is told what comes of it; waits between attempts until it is told to go on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gates: dict[str, asyncio.Future[Any]] = {}

    async def process_message(self, message: Message) -> Any:
        gate = self.gates[message.message_id] = asyncio.get_running_loop().create_future()
        outcome = await gate
        if isinstance(outcome, BaseException):
            raise outcome
        return await outcome() if callable(outcome) else outcome

    async def _process_with_retry(self, message: Message) -> Any:
        for attempt in range(4):
            try:
                return await self.process_message(message)
            except Exception as error:
                if not self._is_recoverable_error(error) or attempt == 3:
                    raise
                await self._back_off(message)
        return None

    async def _back_off(self, message: Message) -> None:
        gate = self.gates[message.message_id] = asyncio.get_running_loop().create_future()
        await gate

    async def tell(self, message: Message, outcome: Any = None) -> None:
        """End what `message` is at: work or back-off."""
        self.gates.pop(message.message_id).set_result(outcome)
        await settle()


class Unjudged(Gated):
    """Has its own way to tell what to try again."""

    async def _process_with_retry(self, message: Message) -> Any:
        for attempt in range(4):
            try:
                return await self.process_message(message)
            except ConnectionError:
                if attempt == 3:
                    raise
                await self._back_off(message)
        return None


class AtOnce(Gated):
    """Works on all its messages at the same time."""

    async def _message_loop(self) -> None:
        while self.is_running:
            message = await self.input_queue.get()
            self.tasks.append(asyncio.create_task(self._work_on(message)))

    async def _work_on(self, message: Message) -> None:
        with suppress(Exception):
            await self._process_with_retry(message)


class InBatches(Gated):
    """Takes all there is, and then works on it, one after the other."""

    async def _message_loop(self) -> None:
        while self.is_running:
            batch = [await self.input_queue.get()]
            while not self.input_queue.empty():
                batch.append(self.input_queue.get_nowait())
            for message in batch:
                await self._process_with_retry(message)


def parts(reading: AgentReading) -> dict[str, float]:
    """Seconds by state, without those that never were."""
    return {state: seconds for state, seconds in reading.time.by_state.items() if seconds}


async def given(agent: Scripted, *messages: Message) -> None:
    for message in messages:
        await agent.enqueue_message(message)
    await settle()


# -- the usual way -------------------------------------------------------------------------------------


@in_loop
async def test_a_call_of_ten_minutes_is_busy_while_it_lasts() -> None:
    agent, clock, message = Gated(), Clock(), note()
    with hooked(agent, clock) as hook:
        assert parts(hook.read()) == {}
        await agent.start()
        clock.advance(3.0)
        assert parts(hook.read()) == {"idle": 3.0}
        await given(agent, message)
        for minute in range(1, 11):
            clock.advance(60.0)
            assert parts(hook.read()) == {"idle": 3.0, "busy": 60.0 * minute}
        await agent.tell(message)
        clock.advance(2.0)
        assert parts(hook.read()) == {"idle": 5.0, "busy": 600.0}
        assert hook.read().uptime_s == hook.read().time.running_s == 605.0
        assert hook.recorder.next_message is NOTHING
        await agent.stop()


@pytest.mark.parametrize("outcome", [None, ValueError(), asyncio.CancelledError(), KeyboardInterrupt()])
@in_loop
async def test_work_is_work_whatever_comes_of_it(outcome: BaseException | None) -> None:
    agent, clock = Scripted(), Clock()

    async def work(_message: Message) -> None:
        clock.advance(7.0)
        if outcome is not None:
            raise outcome

    with hooked(agent, clock) as hook:
        recorder = hook.recorder
        message = note()
        agent.script = [work]
        agent.input_queue.put_nowait(message)
        hook.recorder.times.run(clock(), recorder.spent_until(clock()))
        agent.is_running = True
        agent.tasks = [asyncio.current_task()]  # type: ignore[list-item]
        clock.advance(1.0)
        agent.input_queue.get_nowait()
        with suppress(BaseException):
            await agent._process_with_retry(message)
        clock.advance(2.0)
        assert parts(hook.read()) == {"idle": 3.0, "busy": 7.0}
        agent.is_running, agent.tasks = False, []


@in_loop
async def test_a_message_that_is_cancelled_by_a_stop_was_worked_on_until_then() -> None:
    agent, clock, message = Gated(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(4.0)
        await agent.stop()
        clock.advance(100.0)
        assert parts(hook.read()) == {"busy": 4.0}


# -- back-off ------------------------------------------------------------------------------------------

each_way_to_retry = pytest.mark.parametrize("kind", [Gated, Unjudged])


@each_way_to_retry
@in_loop
async def test_attempts_are_work_and_the_time_between_them_is_back_off(kind: type[Gated]) -> None:
    agent, clock, message = kind(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(1.0)
        await agent.tell(message, ConnectionError())
        clock.advance(10.0)
        assert parts(hook.read()) == {"busy": 1.0, "retry_backoff": 10.0}
        await agent.tell(message)
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 3.0, "retry_backoff": 10.0}
        await agent.tell(message, ConnectionError())
        clock.advance(20.0)
        await agent.tell(message)
        clock.advance(3.0)
        await agent.tell(message)
        clock.advance(5.0)
        assert parts(hook.read()) == {"idle": 5.0, "busy": 6.0, "retry_backoff": 30.0}
        assert hook.read().process_histogram.sum == 36.0
        assert hook.recorder.next_message is NOTHING  # the next one goes the usual way
        await agent.stop()


@each_way_to_retry
@in_loop
async def test_when_no_attempt_is_left_the_agent_is_idle(kind: type[Gated]) -> None:
    agent, clock, message = kind(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        for attempt in range(4):
            clock.advance(1.0)
            await agent.tell(message, ConnectionError())
            if attempt < 3:
                clock.advance(10.0)
                await agent.tell(message)
        clock.advance(7.0)
        assert hook.read().failed == 1
        assert parts(hook.read()) == {"idle": 7.0, "busy": 4.0, "retry_backoff": 30.0}
        await agent.stop()


@each_way_to_retry
@in_loop
async def test_a_message_that_is_cancelled_while_it_backs_off(kind: type[Gated]) -> None:
    agent, clock, message = kind(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(1.0)
        await agent.tell(message, ConnectionError())
        clock.advance(10.0)
        await agent.stop()
        clock.advance(50.0)
        assert hook.read().dropped == 1
        assert parts(hook.read()) == {"busy": 1.0, "retry_backoff": 10.0}
        await agent.start()
        clock.advance(2.0)
        assert parts(hook.read()) == {"idle": 2.0, "busy": 1.0, "retry_backoff": 10.0}
        await agent.stop()


# -- several messages at once --------------------------------------------------------------------------


@in_loop
async def test_a_moment_counts_once_however_many_messages_are_worked_on() -> None:
    agent, clock, (one, other, third) = AtOnce(), Clock(), (note() for _ in range(3))
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, one)
        clock.advance(1.0)
        await given(agent, other)
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 3.0}
        await agent.tell(one)
        clock.advance(4.0)
        await given(agent, third)
        clock.advance(8.0)
        assert parts(hook.read()) == {"busy": 15.0}
        await agent.tell(other)
        await agent.tell(third)
        clock.advance(16.0)
        assert parts(hook.read()) == {"idle": 16.0, "busy": 15.0}
        assert hook.read().process_histogram.sum == 3.0 + 14.0 + 8.0
        await given(agent, one)
        clock.advance(32.0)
        assert parts(hook.read()) == {"idle": 16.0, "busy": 47.0}
        await agent.tell(one)
        assert hook.recorder.next_message is NOTHING
        await agent.stop()


@in_loop
async def test_two_that_come_together_are_both_in_work() -> None:
    agent, clock, messages = AtOnce(), Clock(), [note() for _ in range(2)]
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, *messages)
        clock.advance(1.0)
        await agent.tell(messages[0])
        clock.advance(2.0)
        await agent.tell(messages[1])
        clock.advance(4.0)
        assert parts(hook.read()) == {"idle": 4.0, "busy": 3.0}
        await agent.stop()


@in_loop
async def test_an_agent_is_in_back_off_only_if_it_works_on_nothing_else() -> None:
    agent, clock, (failing, other) = AtOnce(), Clock(), (note() for _ in range(2))
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, failing, other)
        clock.advance(1.0)
        await agent.tell(failing, ConnectionError())
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 3.0}
        await agent.tell(other, ConnectionError())
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 3.0, "retry_backoff": 4.0}
        await agent.tell(failing)
        clock.advance(8.0)
        await agent.tell(failing)
        clock.advance(16.0)
        await agent.tell(other)
        await agent.tell(other)
        clock.advance(32.0)
        assert parts(hook.read()) == {"idle": 32.0, "busy": 11.0, "retry_backoff": 20.0}
        await agent.stop()


@in_loop
async def test_all_of_them_cancelled_at_once() -> None:
    agent, clock, messages = AtOnce(), Clock(), [note() for _ in range(3)]
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, *messages)
        clock.advance(5.0)
        await agent.stop()
        clock.advance(5.0)
        assert hook.read().dropped == 3
        assert parts(hook.read()) == {"busy": 5.0}
        assert (hook.recorder.next_message, hook.recorder.also_in_work) == (NOTHING, 0)


@in_loop
async def test_messages_taken_together_and_worked_on_one_after_the_other() -> None:
    agent, clock, messages = InBatches(), Clock(), [note() for _ in range(3)]
    with hooked(agent, clock) as hook:
        for message in messages:
            agent.input_queue.put_nowait(message)
        await agent.start()
        await settle()
        for number, message in enumerate(messages, start=1):
            clock.advance(2.0)
            assert parts(hook.read()) == {"busy": 2.0 * number}
            await agent.tell(message)
        clock.advance(1.0)
        assert parts(hook.read()) == {"idle": 1.0, "busy": 6.0}
        assert hook.read().process_histogram.sum == 2.0 + 4.0 + 6.0
        await agent.stop()


@in_loop
async def test_what_was_told_too_early_is_made_good_and_nothing_falls() -> None:
    """A message that is begun long after it was taken: its whole time is processing time, as the histogram says."""

    class Slow(Gated):
        async def _message_loop(self) -> None:
            message = await self.input_queue.get()
            await self._back_off(message)
            await self._process_with_retry(message)

    agent, clock, message = Slow(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(10.0)
        assert parts(hook.read()) == {"idle": 10.0}
        await agent.tell(message)
        clock.advance(1.0)
        assert parts(hook.read()) == {"idle": 10.0, "busy": 1.0}
        await agent.tell(message)
        clock.advance(4.0)
        assert parts(hook.read()) == {"idle": 10.0, "busy": 5.0}
        clock.advance(35.0)
        assert parts(hook.read()) == {"idle": 39.0, "busy": 11.0}
        await agent.stop()


# -- sends that wait -----------------------------------------------------------------------------------


class Inbox:
    """Where messages are sent to: has room when it is told so."""

    agent_id = "target"

    def __init__(self) -> None:
        self.room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.got: list[Message] = []

    async def enqueue_message(self, message: Message) -> None:
        if self.room.cancelled():
            self.room = asyncio.get_running_loop().create_future()
        await self.room
        self.got.append(message)

    async def has_room(self) -> None:
        self.room.set_result(None)
        await settle()


def connected(agent: Scripted) -> Inbox:
    inbox = Inbox()
    agent.connected_agents["target"] = inbox  # type: ignore[assignment]
    return inbox


def to_target() -> Message:
    return note(target_agent_id="target")


@in_loop
async def test_a_send_of_a_handler_that_waits_is_blocked() -> None:
    agent, clock, message = Gated(), Clock(), note()
    inbox = connected(agent)

    async def send() -> None:
        clock.advance(1.0)
        await agent.send_message(to_target())
        clock.advance(2.0)

    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        await agent.tell(message, send)
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 1.0, "blocked_sending": 4.0}
        await inbox.has_room()
        clock.advance(8.0)
        assert parts(hook.read()) == {"idle": 8.0, "busy": 3.0, "blocked_sending": 4.0}
        assert (hook.read().sent, hook.read().processed, len(inbox.got)) == (1, 1, 1)
        assert hook.recorder.next_message is NOTHING
        await agent.stop()


@in_loop
async def test_a_traced_send_that_waits_is_blocked_as_well() -> None:
    agent, clock, message = Gated(), Clock(), note()
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        tracer = message_tracer(TracerProvider(shutdown_on_exit=False), CONFIG)
        hook.trace(tracer)
        await agent.start()
        await given(agent, message)
        clock.advance(1.0)
        await agent.tell(message, lambda: agent.send_message(to_target()))
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 1.0, "blocked_sending": 4.0}
        await inbox.has_room()
        clock.advance(8.0)
        assert parts(hook.read()) == {"idle": 8.0, "busy": 1.0, "blocked_sending": 4.0}
        await agent.stop()


@in_loop
async def test_replies_that_wait_block_the_loop() -> None:
    agent, clock, message = Gated(), Clock(), note()
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(1.0)
        await agent.tell(message, [to_target(), to_target()])
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 1.0, "blocked_sending": 4.0}
        await inbox.has_room()
        clock.advance(8.0)
        assert parts(hook.read()) == {"idle": 8.0, "busy": 1.0, "blocked_sending": 4.0}
        assert len(inbox.got) == 2
        await agent.stop()


@in_loop
async def test_a_send_that_does_not_wait_is_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(AgentRecorder, "send_waits", lambda _recorder, message_id: waited.append(message_id))
    agent, target = Scripted([to_target()]), Scripted(agent_id="target")
    agent.connect(target)
    with hooked(agent) as hook:
        await handle(agent, note())
        assert (hook.read().sent, waited) == (1, [])


@pytest.mark.parametrize("fails", [False, True])
@in_loop
async def test_a_send_that_waits_returns_and_raises_what_it_would(fails: bool) -> None:
    failure, told = OSError("no room"), object()

    class Sending(Scripted):
        async def send_message(self, message: Message) -> Any:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if fails:
                raise failure
            return told

    agent, clock = Sending(), Clock()
    with hooked(agent, clock) as hook:
        if not fails:
            assert await agent.send_message(note()) is told
        else:
            with pytest.raises(OSError, match="no room") as raised:
                await agent.send_message(note())
            assert raised.value is failure
            assert (failure.__context__, failure.__cause__) == (None, None)
        assert hook.read().undeliverable == fails
        assert hook.recorder.next_message is NOTHING


@in_loop
async def test_a_send_that_is_cancelled_while_it_waits_blocks_no_longer() -> None:
    agent, clock, message = Gated(), Clock(), note()
    connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)

        async def send() -> None:
            with suppress(TimeoutError, asyncio.TimeoutError, asyncio.CancelledError):
                await agent.send_message(to_target())
            clock.advance(2.0)

        await agent.tell(message, send)
        clock.advance(4.0)
        (loop_task,) = agent.tasks
        loop_task.cancel()
        await settle()
        clock.advance(8.0)
        assert parts(hook.read()) == {"idle": 8.0, "busy": 2.0, "blocked_sending": 4.0}
        await agent.stop()


@in_loop
async def test_an_agent_that_is_stopped_while_it_sends() -> None:
    agent, clock, message = Gated(), Clock(), note()
    connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        await agent.tell(message, lambda: agent.send_message(to_target()))
        clock.advance(4.0)
        await agent.stop()
        clock.advance(8.0)
        assert parts(hook.read()) == {"blocked_sending": 4.0}
        assert (hook.read().dropped, hook.read().sent) == (1, 0)


@in_loop
async def test_a_send_of_somebody_else_blocks_an_agent_only_while_it_does_nothing() -> None:
    agent, clock, message = Gated(), Clock(), note()
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        sending = asyncio.create_task(agent.send_message(to_target()))
        await settle()
        clock.advance(1.0)
        assert parts(hook.read()) == {"blocked_sending": 1.0}
        await given(agent, message)
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 2.0, "blocked_sending": 1.0}
        await agent.tell(message, ConnectionError())
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 2.0, "blocked_sending": 5.0}
        await inbox.has_room()
        clock.advance(8.0)
        assert parts(hook.read()) == {"busy": 2.0, "blocked_sending": 5.0, "retry_backoff": 8.0}
        await agent.stop()
        assert await sending


@in_loop
async def test_one_message_sends_while_another_is_worked_on() -> None:
    agent, clock, (sender, worker) = AtOnce(), Clock(), (note() for _ in range(2))
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, sender, worker)
        await agent.tell(sender, lambda: agent.send_message(to_target()))
        clock.advance(1.0)
        assert parts(hook.read()) == {"busy": 1.0}
        await agent.tell(worker)
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 1.0, "blocked_sending": 2.0}
        await inbox.has_room()
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 1.0, "blocked_sending": 2.0, "idle": 4.0}
        await agent.stop()


@in_loop
async def test_a_send_within_a_send_waits_until_both_are_done() -> None:
    class Persistent(Gated):
        async def send_message(self, message: Message) -> bool:
            if message.payload.get("again"):
                return await super().send_message(message)
            message.payload["again"] = True
            delivered = await self.send_message(message)
            await self._back_off(message)
            return delivered

    agent, clock, message = Persistent(), Clock(), note()
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        sent = to_target()
        await agent.tell(message, lambda: agent.send_message(sent))
        clock.advance(4.0)
        await inbox.has_room()
        clock.advance(2.0)
        await agent.tell(sent)
        clock.advance(1.0)
        assert parts(hook.read()) == {"blocked_sending": 6.0, "idle": 1.0}
        await agent.stop()


# -- runs ----------------------------------------------------------------------------------------------


@in_loop
async def test_time_counts_over_all_runs_and_not_in_between() -> None:
    agent, clock, message = Gated(), Clock(), note()
    with hooked(agent, clock) as hook:
        uptimes = 0.0
        for run in range(1, 4):
            await agent.start()
            clock.advance(1.0)
            await given(agent, message)
            clock.advance(2.0)
            await agent.tell(message)
            uptimes += hook.read().uptime_s
            await agent.stop()
            clock.advance(1000.0)
            assert parts(hook.read()) == {"idle": 1.0 * run, "busy": 2.0 * run}
            assert hook.read().time.running_s == uptimes


@in_loop
async def test_runs_count_though_nobody_reads_them() -> None:
    agent, clock = Gated(), Clock()
    with hooked(agent, clock) as hook:
        for _ in range(3):
            await agent.start()
            clock.advance(1.0)
            await agent.stop()
            clock.advance(10.0)
        assert parts(hook.read()) == {"idle": 3.0}


@in_loop
async def test_a_run_lasts_until_stop_returns_also_for_a_second_stop_meanwhile() -> None:
    class Saving(Gated):
        async def _save_state(self) -> None:
            await self._back_off(message)

    agent, clock, message = Saving(), Clock(), note()
    agent.state_persistence_enabled = True
    with hooked(agent, clock) as hook:
        await agent.start()
        clock.advance(1.0)
        stopping = asyncio.create_task(agent.stop())
        await settle()
        clock.advance(2.0)
        await agent.stop()
        clock.advance(4.0)
        assert not hook.read().running
        assert parts(hook.read()) == {"idle": 7.0}
        await agent.tell(message)
        await stopping
        clock.advance(8.0)
        assert parts(hook.read()) == {"idle": 7.0}


@in_loop
async def test_an_agent_that_ran_before_we_came_counts_from_then() -> None:
    agent, clock, message = Gated(), Clock(), note()
    await agent.start()
    agent.stats.started_at -= 3600.0  # type: ignore[operator]
    await given(agent, message)  # unseen
    with hooked(agent, clock) as hook:
        clock.advance(5.0)
        assert hook.read().uptime_s > 3600.0
        assert parts(hook.read()) == {"idle": 5.0}
        await agent.stop()
    assert parts(hook.read()) == {"idle": 5.0}


@in_loop
async def test_one_that_ran_before_we_came_and_is_stopped_before_anybody_reads() -> None:
    agent, clock = Gated(), Clock()
    await agent.start()
    with hooked(agent, clock) as hook:
        clock.advance(5.0)
        await agent.stop()
        clock.advance(5.0)
        assert parts(hook.read()) == {"idle": 5.0}


@in_loop
async def test_an_agent_that_says_that_it_stopped_without_a_stop_ran_until_it_was_seen_last() -> None:
    agent, clock = Gated(), Clock()
    with hooked(agent, clock) as hook:
        await agent.start()
        clock.advance(5.0)
        hook.read()
        clock.advance(3.0)
        agent.is_running = False
        assert parts(hook.read()) == {"idle": 5.0}
        clock.advance(7.0)
        agent.is_running = True
        assert parts(hook.read()) == {"idle": 5.0}
        clock.advance(1.0)
        assert parts(hook.read()) == {"idle": 6.0}
        await agent.stop()


@in_loop
async def test_a_stop_that_fails_and_leaves_the_agent_running_ends_nothing() -> None:
    class Stubborn(Gated):
        async def stop(self) -> None:
            raise OSError("not now")

    agent, clock = Stubborn(), Clock()
    with hooked(agent, clock) as hook:
        await agent.start()
        clock.advance(5.0)
        with pytest.raises(OSError, match="not now"):
            await agent.stop()
        clock.advance(3.0)
        assert parts(hook.read()) == {"idle": 8.0}
        agent.is_running = False
        clock.advance(7.0)
        assert parts(hook.read()) == {"idle": 8.0}
        await super(Stubborn, agent).stop()


@in_loop
async def test_an_agent_let_go_is_told_as_it_was_and_goes_on_when_it_comes_back() -> None:
    agent, clock, (one, other) = Gated(), Clock(), (note() for _ in range(2))
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, one)
        clock.advance(1.0)
        hook.let_go()
        clock.advance(2.0)
        assert parts(hook.read()) == {"busy": 1.0}
        await agent.tell(one)
        clock.advance(4.0)
        assert parts(hook.read()) == {"busy": 1.0}
    recorder = hook.recorder
    recorder.come_back()
    again = AgentHook(agent, recorder, FrameworkAdapter())
    clock.advance(8.0)
    await given(agent, other)
    clock.advance(16.0)
    assert parts(again.read()) == {"idle": 8.0, "busy": 17.0}
    await agent.stop()
    again.release()


@in_loop
async def test_one_that_comes_back_before_it_is_started_again() -> None:
    agent, clock, (one, other) = Gated(), Clock(), (note() for _ in range(2))
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, one)
        clock.advance(1.0)
        await agent.tell(one)
        await agent.stop()
        hook.let_go()
    hook.recorder.come_back()
    again = AgentHook(agent, hook.recorder, FrameworkAdapter())
    clock.advance(2.0)
    assert parts(again.read()) == {"busy": 1.0}
    await agent.start()
    await given(agent, other)
    clock.advance(4.0)
    assert parts(again.read()) == {"busy": 5.0}
    await agent.stop()
    again.release()


@in_loop
async def test_one_that_comes_back_while_it_works_on_the_same_message() -> None:
    agent, clock, message = Gated(), Clock(), note()
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        clock.advance(1.0)
        hook.let_go()
    clock.advance(2.0)
    hook.recorder.come_back()
    again = AgentHook(agent, hook.recorder, FrameworkAdapter())
    clock.advance(4.0)
    assert parts(again.read()) == {"busy": 5.0}
    await agent.tell(message)
    clock.advance(8.0)
    assert parts(again.read()) == {"busy": 5.0, "idle": 8.0}
    await agent.stop()
    again.release()


@in_loop
async def test_uninstrumented_while_a_send_waits_it_goes_on_all_the_same() -> None:
    agent, clock, message = Gated(), Clock(), note()
    inbox = connected(agent)
    with hooked(agent, clock) as hook:
        await agent.start()
        await given(agent, message)
        await agent.tell(message, lambda: agent.send_message(to_target()))
        clock.advance(1.0)
    await inbox.has_room()
    assert len(inbox.got) == 1
    assert hook.recorder.next_message is NOTHING
    assert not hook.recorder.sending
    await agent.stop()


# -- agents of another make ----------------------------------------------------------------------------


class Worker(CoreAgent):
    clock: Clock

    async def _process_message(self, message: CoreMessage) -> None:
        self.clock.advance(2.0)


@in_loop
async def test_without_start_and_stop_readings_tell_how_long_it_ran() -> None:
    clock = Clock()
    agent = Worker("a", "worker")
    agent.clock = clock
    agent.start_time = None  # type: ignore[assignment]
    hook = AgentHook(agent, AgentRecorder("a", "a", clock=clock), CoreAdapter())
    assert parts(hook.read()) == {}
    running = asyncio.create_task(agent.run())
    await settle()
    assert parts(hook.read()) == {}
    clock.advance(3.0)
    assert parts(hook.read()) == {"idle": 3.0}
    agent.inbox.put_nowait(CoreMessage("x", "a", "text", {}))
    await settle()
    assert parts(hook.read()) == {"idle": 3.0, "busy": 2.0}
    running.cancel()
    agent.status = Status.SHUTDOWN
    clock.advance(10.0)
    assert parts(hook.read()) == {"idle": 3.0, "busy": 2.0}
    hook.release()


class Plain(AgentAdapter):
    """Of agents that can only be seen to run."""

    process = "process_message"

    def matches(self, agent: Any) -> bool:
        return True

    def inbox(self, agent: Any) -> Any:
        return agent.input_queue

    def is_running(self, agent: Any) -> bool:
        return bool(agent.is_running)


@in_loop
async def test_work_between_two_readings_is_not_lost_though_the_start_was_not_seen() -> None:
    agent, clock = Gated(agent_id="a"), Clock()
    message = note()
    hook = AgentHook(agent, AgentRecorder("a", "a", clock=clock), Plain())
    await agent.start()
    await given(agent, message)
    clock.advance(4.0)
    await agent.tell(message)
    assert parts(hook.read()) == {"busy": 4.0}
    clock.advance(1.0)
    assert parts(hook.read()) == {"busy": 4.0, "idle": 1.0}
    await agent.stop()
    hook.release()


@in_loop
async def test_work_is_told_though_no_reading_ever_saw_the_agent_run() -> None:
    agent, clock, message = Gated(agent_id="a"), Clock(), note()
    hook = AgentHook(agent, AgentRecorder("a", "a", clock=clock), Plain())
    await agent.start()
    await given(agent, message)
    clock.advance(4.0)
    await agent.tell(message)
    await agent.stop()
    assert parts(hook.read()) == {"busy": 4.0}
    hook.release()


# -- readings from other threads -----------------------------------------------------------------------


def test_a_reading_caught_while_a_message_ends_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    recorder, message = AgentRecorder("id", "name", clock=clock), note()
    recorder.arrived(message)
    recorder.left(message, nobody, own_loop=True)
    flight = recorder.started(message)
    assert flight is not None
    clock.advance(600.0)
    recorder.next_message = NOTHING  # the first thing that is written at its end
    pauses: list[float] = []

    def go_on(seconds: float) -> None:
        pauses.append(seconds)
        flight.record.process.record(600.0)

    monkeypatch.setattr(time, "sleep", go_on)
    _types, _size, moment = read_types(recorder, lambda: None)
    assert (moment.spent, len(pauses)) == ((600.0, 0.0, 0.0), 1)


def test_what_stays_as_if_a_message_were_ending_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, message = AgentRecorder("id", "name"), note()
    recorder.arrived(message)
    recorder.left(message, nobody, own_loop=True)
    recorder.next_message = NOTHING  # never to be finished: something of ours failed
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for most_s in (0.1001, 0.0101, 0.0101):
        types, _size, moment = read_types(recorder, lambda: None)
        assert (types[0].in_flight, moment.in_hand) == (1, 0)
        assert 0.01 <= sum(pauses) <= most_s
        pauses.clear()


class Busy(Scripted):
    """Works for a while, for real."""

    number = 0

    async def process_message(self, message: Message) -> None:
        self.number += 1
        if self.number % 7 == 0:
            raise ConnectionError
        if self.number % 3 == 0:
            await asyncio.sleep(0)


def fallen(readings: list[TimeReading]) -> list[tuple[TimeReading, TimeReading]]:
    return [
        (former, later)
        for former, later in pairwise(readings)
        if any(later.by_state[state] < seconds for state, seconds in former.by_state.items())
    ]


def open_some(agent: Scripted) -> None:
    for gate in list(getattr(agent, "gates", {}).values())[::2]:
        if not gate.done():
            gate.set_result(None)


@pytest.mark.parametrize("kind", [Busy, AtOnce])
def test_no_part_falls_for_a_reader_in_another_thread(kind: type[Scripted]) -> None:
    agent = kind()
    readings: list[list[TimeReading]] = [[], []]
    done = threading.Event()

    def read(hook: AgentHook, found: list[TimeReading]) -> None:
        while not done.is_set():
            found.append(hook.read().time)

    async def drive() -> None:
        with hooked(agent) as hook:
            threads = [threading.Thread(target=read, args=(hook, found)) for found in readings]
            for thread in threads:
                thread.start()
            await agent.start()
            for index in range(4_000):
                message = note()
                await agent.enqueue_message(message)
                if index % 5 == 0:
                    await asyncio.sleep(0)
                open_some(agent)
            await asyncio.sleep(0.01)
            await agent.stop()
            done.set()
            for thread in threads:
                await asyncio.to_thread(thread.join, 10.0)
            last = hook.read().time
            assert last.running_s > 0.0
            assert last.idle_s >= 0.0

    with switching_often():
        asyncio.run(drive())
    for found in readings:
        assert len(found) > 10
        assert fallen(found) == []


def test_the_comparison_notices_a_fall() -> None:
    assert len(fallen([TimeReading(10, 10), TimeReading(20, 5), TimeReading(20, 5)])) == 1


_FORK = """
import os, signal, warnings
from amptalk_otel import _timesheet
warnings.simplefilter("ignore", DeprecationWarning)
with _timesheet._lock:  # as a reader in another thread would have it
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        sheet = _timesheet.Timesheet()
        sheet.run(1.0, (0.0, 0.0, 0.0))
        os._exit(7 if sheet.read_as_it_is(3.0, (0.5, 0.0, 0.0)).idle_s == 1.5 else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_that_is_forked_while_somebody_reads_can_start_agents() -> None:
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


NOTHING_YET = (0.0, 0.0, 0.0)


def test_a_run_whose_end_nobody_saw_lasted_until_it_was_seen_for_the_last_time() -> None:
    sheet = Timesheet()
    sheet.run(0.0, NOTHING_YET)
    assert sheet.read(10.0, NOTHING_YET, is_running=True, started_at=None).running_s == 10.0
    sheet.run(20.0, NOTHING_YET)
    assert sheet.read(25.0, NOTHING_YET, is_running=True, started_at=None).running_s == 15.0


def test_what_a_stopped_agent_does_does_not_count_when_it_is_seen_running_again() -> None:
    sheet = Timesheet()
    sheet.run(0.0, NOTHING_YET)
    sheet.stop(10.0, (4.0, 0.0, 0.0))
    sheet.read(20.0, (6.0, 0.0, 0.0), is_running=True, started_at=None)
    told = sheet.read(22.0, (7.0, 0.0, 0.0), is_running=True, started_at=None)
    assert (told.busy_s, told.idle_s) == (5.0, 7.0)
