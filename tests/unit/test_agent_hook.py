"""What happens to a message after it was taken: processing, retries, cancellation, replies."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._hooks._agent import AgentHook
from amptalk_otel.adapters import FrameworkAdapter
from amptalk_otel.demo.runtime import (
    Agent,
    CommunicationConfig,
    CommunicationMode,
    Message,
    MessageMetadata,
    MessageType,
)
from tests.support import Clock, Scripted, counts, handle, hold, hooked, identity, in_loop, note, of_type, settle


class Halt(BaseException):
    """Neither an error nor a cancellation."""


class BackingOff(Scripted):
    """Waits on the test's clock between attempts."""

    clock: Clock
    back_off_s = 5.0

    def _retry_delay(self, attempt: int) -> float:
        self.clock.advance(self.back_off_s)
        return 0.0


# -- processed, failed, retried ------------------------------------------------------------------------


@in_loop
async def test_messages_are_counted_by_type_and_outcome() -> None:
    agent = Scripted(None, ValueError(), KeyError(), None)
    with hooked(agent) as hook:
        kinds = (MessageType.COMMAND, MessageType.COMMAND, MessageType.HEARTBEAT, MessageType.HEARTBEAT)
        await handle(agent, *map(note, kinds))
        assert counts(hook.read()) == {
            "received": 4, "processed": 2, "failed": {"ValueError": 1, "KeyError": 1}, "waits": 4, "works": 4,
        }  # fmt: skip
        command, heartbeat = (of_type(hook.read(), kind) for kind in (MessageType.COMMAND, MessageType.HEARTBEAT))
        assert (command.received, command.processed, command.failed) == (2, 1, {"ValueError": 1})
        assert (heartbeat.received, heartbeat.processed, heartbeat.failed) == (2, 1, {"KeyError": 1})


@in_loop
async def test_two_failures_and_a_success_with_back_off_are_one_long_processing() -> None:
    async def work(_message: Message) -> None:
        agent.clock.advance(0.5)

    async def fail(_message: Message) -> None:
        agent.clock.advance(0.25)
        raise ConnectionError

    agent = BackingOff(fail, fail, work, work)
    agent.clock = Clock()
    with hooked(agent, agent.clock) as hook:
        await handle(agent, note(MessageType.NLP_REQUEST), note(MessageType.NLP_RESULT))
        assert counts(hook.read()) == {
            "received": 2, "processed": 2, "retries": {"ConnectionError": 2}, "waits": 2, "works": 2,
        }  # fmt: skip
        first, second = of_type(hook.read(), MessageType.NLP_REQUEST), of_type(hook.read(), MessageType.NLP_RESULT)
        assert (first.wait.count, first.wait.sum) == (1, 0.0)
        assert (first.process.count, first.process.sum) == (1, 0.25 + 5.0 + 0.25 + 5.0 + 0.5)
        assert (second.wait.count, second.wait.sum) == (1, 11.0)  # it stood behind the first all that time
        assert (second.process.count, second.process.sum) == (1, 0.5)


@in_loop
async def test_a_message_that_fails_at_every_attempt_fails_once_with_the_last_error() -> None:
    agent = Scripted(ConnectionError(), TimeoutError(), OSError(), RuntimeError())
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {
            "received": 1,
            "failed": {"RuntimeError": 1},
            "retries": {"ConnectionError": 1, "TimeoutError": 1, "OSError": 1},
            "waits": 1,
            "works": 1,
        }


@pytest.mark.parametrize(("failures", "retries"), [(0, 1), (1, 2), (2, 3)])
@in_loop
async def test_attempts_that_an_error_handler_makes_are_retries_too(failures: int, retries: int) -> None:
    async def handler(_message: Message, _details: dict[str, Any]) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ConnectionError

    agent = Scripted(ConnectionError())
    agent.error_handlers["ConnectionError"] = handler
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {
            "received": 1, "processed": 1, "retries": {"ConnectionError": retries}, "waits": 1, "works": 1,
        }  # fmt: skip
    assert agent.stats.retries == retries


@in_loop
async def test_an_error_handler_that_never_helps_ends_in_one_failure() -> None:
    async def handler(_message: Message, _details: dict[str, Any]) -> None:
        raise OSError

    agent = Scripted(ConnectionError())
    agent.error_handlers["ConnectionError"] = handler
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {
            "received": 1, "failed": {"OSError": 1}, "retries": {"ConnectionError": 1, "OSError": 2},
            "waits": 1, "works": 1,
        }  # fmt: skip


@in_loop
async def test_retries_of_an_earlier_processing_are_not_counted_again() -> None:
    message = note(metadata=MessageMetadata(retry_count=3))
    agent = Scripted(ValueError(), ConnectionError(), None)
    with hooked(agent) as hook:
        await handle(agent, message, message)
        assert counts(hook.read()) == {
            "received": 2,
            "failed": {"ValueError": 1},
            "processed": 1,
            "retries": {"ConnectionError": 1},
            "waits": 2,
            "works": 2,
        }


@in_loop
async def test_a_process_message_that_calls_itself_is_one_attempt() -> None:
    class Recursive(Scripted):
        async def process_message(self, message: Message, depth: int = 2) -> Any:
            return (
                await self.process_message(message, depth=depth - 1)
                if depth
                else await super().process_message(message)
            )

    agent = Recursive()
    with hooked(agent) as hook:
        await handle(agent, note())
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}


@in_loop
async def test_attempts_are_covered_while_there_is_something_to_retry_and_not_before_or_after() -> None:
    agent, covered = Scripted(), []

    async def look(_message: Message) -> None:
        covered.append("process_message" in vars(agent))
        if len(covered) in {2, 3}:
            raise ConnectionError

    agent.script = [look] * 5
    with hooked(agent) as hook:
        await handle(agent, note(), note(), note())
        assert covered == [False, False, True, True, False]
        assert counts(hook.read()) == {
            "received": 3, "processed": 3, "retries": {"ConnectionError": 2}, "waits": 3, "works": 3,
        }  # fmt: skip


class OwnWay(Scripted):
    """Retries in a way of its own, under a time limit."""

    async def _process_with_retry(self, message: Message) -> Any:
        for _ in range(3):
            try:
                return await asyncio.wait_for(self.process_message(message), 5)
            except OSError:
                continue
        raise RuntimeError


@in_loop
async def test_a_subclass_that_retries_in_its_own_way_is_counted_as_well() -> None:
    agent = OwnWay(OSError(), TimeoutError(), None, *[OSError()] * 3)
    with hooked(agent) as hook:
        with pytest.raises(OSError, match=r"^$"):  # the program's own call is no attempt
            await OwnWay.process_message(agent, note())
        agent.script.insert(0, OSError())
        await handle(agent, note(), note())
        assert counts(hook.read()) == {
            "received": 2, "processed": 1, "failed": {"RuntimeError": 1},
            "retries": {"OSError": 3, "TimeoutError": 1}, "waits": 2, "works": 2,
        }  # fmt: skip


@in_loop
async def test_judging_an_error_outside_of_any_message_counts_nothing() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        assert agent._is_recoverable_error(ConnectionError()) is True
        assert agent._is_recoverable_error(ValueError()) is False
        await handle(agent, note())
        assert counts(hook.read()) == {"received": 1, "processed": 1, "waits": 1, "works": 1}


@in_loop
async def test_an_agent_without_retries_is_counted_as_well() -> None:
    class Plain:
        def __init__(self) -> None:
            self.agent_id, self.name, self.is_running = "plain", "plain", True
            self.input_queue: asyncio.Queue[Message] = asyncio.Queue()

        async def process_message(self, message: Message) -> Any:
            if message.payload:
                raise LookupError
            return message

        async def run(self) -> None:
            for _ in range(2):
                try:
                    await self.process_message(await self.input_queue.get())
                except LookupError:
                    continue

    agent = Plain()
    hook = AgentHook(agent, AgentRecorder("plain", "plain"), FrameworkAdapter())
    for payload in ({"bad": True}, {}):
        await agent.input_queue.put(note(payload=payload))
    await asyncio.create_task(agent.run())
    assert counts(hook.read()) == {
        "received": 2, "processed": 1, "failed": {"LookupError": 1}, "waits": 2, "works": 2,
    }  # fmt: skip
    hook.release()


# -- nothing is changed on the way ---------------------------------------------------------------------


@in_loop
async def test_what_a_call_returns_or_raises_is_the_very_object() -> None:
    result, error = [note()], ValueError("mine")
    agent = Scripted(result, error)
    seen: list[Any] = []
    retried = agent._process_with_retry

    async def spy(message: Message) -> Any:
        try:
            seen.append(await retried(message))
        except Exception as raised:
            seen.append(raised)
            raise

    with hooked(agent):
        retried = agent._process_with_retry
        agent._process_with_retry = spy  # type: ignore[method-assign]
        await handle(agent, note(), note())
    assert seen[0] is result
    assert seen[1] is error
    assert error.args == ("mine",)
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("error", [Halt(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_exception_passes_through_and_ends_the_message(error: BaseException) -> None:
    readings: list[dict[str, Any]] = []

    async def run() -> None:
        agent = Scripted(error)
        with hooked(agent) as hook:
            agent.input_queue.put_nowait(note())
            agent.is_running = True
            loop = asyncio.create_task(agent._message_loop())
            loop.add_done_callback(lambda _loop: readings.append(counts(hook.read())))
            await loop

    with pytest.raises(type(error)) as raised:
        asyncio.run(run())
    assert raised.value is error
    assert readings == [{"received": 1, "failed": {type(error).__name__: 1}, "waits": 1, "works": 1}]


@in_loop
async def test_calls_by_the_program_itself_are_not_counted() -> None:
    answer = [note()]
    agent = Scripted(answer, ValueError(), answer)
    with hooked(agent) as hook:
        waiting = note()
        await agent.enqueue_message(waiting)
        assert await agent.process_message(note()) is answer
        with pytest.raises(ValueError, match=r"^$"):
            await agent._process_with_retry(note())
        assert await agent.process_message(waiting) is answer  # though it is in the inbox
        assert counts(hook.read()) == {"received": 1, "queued": 1}


@in_loop
async def test_methods_may_be_called_with_the_names_that_a_subclass_gave_its_parameters() -> None:
    class Renaming(Scripted):
        async def process_message(self, msg: Message) -> Any:
            return await super().process_message(msg)

        async def _process_with_retry(self, msg: Message) -> Any:
            return await self.process_message(msg=msg)

        async def send_message(self, msg: Message) -> bool:
            return await super().send_message(msg)

    target, reply = Scripted(agent_id="target"), note(target_agent_id="target")
    agent = Renaming([reply])
    agent.connect(target)
    with hooked(agent) as hook:
        await handle(agent, note())
        assert await agent.send_message(msg=note(target_agent_id="target"))
        assert not await agent.send_message(msg=note(target_agent_id="elsewhere"))
        await agent._process_with_retry(msg=note())
        assert counts(hook.read()) == {
            "received": 1,
            "processed": 1,
            "sent": 2,
            "undeliverable": {"unknown_target": 1},
            "waits": 1,
            "works": 1,
        }


# -- cancelled, stopped, never begun -------------------------------------------------------------------


@in_loop
async def test_stopping_drops_the_message_in_work_and_keeps_those_in_the_inbox() -> None:
    agent = Scripted(hold)
    with hooked(agent) as hook:
        await agent.start()
        for _ in range(6):
            await agent.enqueue_message(note())
        await settle()
        assert hook.read().running
        assert counts(hook.read()) == {"received": 6, "in_flight": 1, "queued": 5, "waits": 1}
        await agent.stop()
        assert counts(hook.read()) == {"received": 6, "dropped": {"cancelled": 1}, "queued": 5, "waits": 1}
        assert not hook.read().running
        assert hook.read().uptime_s == 0.0
        await agent.start()
        await settle(60)
        assert hook.read().running
        assert counts(hook.read()) == {
            "received": 6, "dropped": {"cancelled": 1}, "processed": 5, "waits": 6, "works": 5,
        }  # fmt: skip
        await agent.stop()


@in_loop
async def test_an_agent_let_go_drops_what_is_left_in_its_inbox() -> None:
    agent = Scripted(hold)
    with hooked(agent) as hook:
        await agent.start()
        for _ in range(6):
            await agent.enqueue_message(note())
        await settle()
        await agent.stop()
        hook.let_go()
        assert counts(hook.read()) == {
            "received": 6, "dropped": {"cancelled": 1, "unregistered": 5}, "waits": 1,
        }  # fmt: skip
        assert hook.read().oldest_age_s is None
        assert agent.input_queue.qsize() == 5


@in_loop
async def test_a_message_cancelled_during_its_back_off_is_cancelled_and_not_failed() -> None:
    agent = Scripted(ConnectionError())
    agent.base_retry_delay = 60.0
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        assert counts(hook.read()) == {"received": 1, "in_flight": 1, "waits": 1}
        await agent.stop()
        assert counts(hook.read()) == {"received": 1, "dropped": {"cancelled": 1}, "waits": 1}


class Mangled:
    """A message with which the loop fails before it begins to process it."""

    message_type = MessageType.ERROR

    @property
    def metadata(self) -> MessageMetadata:
        return MessageMetadata(processing_started_at=0.0, error=None) if self._looked() else None  # type: ignore[return-value]

    def _looked(self) -> bool:
        self.looks = getattr(self, "looks", 0) + 1
        return self.looks % 2 == 0


class Skipping(Scripted):
    """Leaves alone what is no message."""

    async def _message_loop(self) -> None:
        while self.is_running:
            item: object = await self.input_queue.get()
            if isinstance(item, Message):
                await self._process_with_retry(item)


@in_loop
async def test_a_message_that_the_loop_takes_and_never_begins_fails_when_the_loop_goes_on() -> None:
    agent, items = Scripted(), [Mangled(), Mangled(), Mangled()]
    with hooked(agent) as hook:
        await agent.start()
        for item in items:
            agent.input_queue.put_nowait(item)  # type: ignore[arg-type]
        await settle()
        assert counts(hook.read()) == {"received": 3, "in_flight": 3, "waits": 3}
        await agent.enqueue_message(note())
        await settle()
        assert counts(hook.read()) == {
            "received": 4, "failed": {"_OTHER": 3}, "processed": 1, "waits": 4, "works": 1,
        }  # fmt: skip
        await agent.stop()


@in_loop
async def test_a_message_that_was_never_begun_fails_though_the_agent_was_restarted_since() -> None:
    agent = Scripted()
    with hooked(agent) as hook:
        await agent.start()
        agent.input_queue.put_nowait(Mangled())  # type: ignore[arg-type]
        await settle()
        await agent.stop()
        await handle(agent, note())
        assert counts(hook.read()) == {
            "received": 2, "failed": {"_OTHER": 1}, "processed": 1, "waits": 2, "works": 1,
        }  # fmt: skip


@in_loop
async def test_a_message_at_the_address_of_one_that_was_never_begun_is_another_message() -> None:
    agent, broken = Scripted(), Mangled()
    with hooked(agent) as hook:
        await agent.start()
        for _ in range(3):  # the same object stands for three that came to lie at one address
            agent.input_queue.put_nowait(broken)  # type: ignore[arg-type]
            await settle()
        assert counts(hook.read()) == {"received": 3, "failed": {"_OTHER": 2}, "in_flight": 1, "waits": 3}
        await agent.enqueue_message(note())
        await settle()
        assert counts(hook.read()) == {
            "received": 4, "failed": {"_OTHER": 3}, "processed": 1, "waits": 4, "works": 1,
        }  # fmt: skip
        assert not hook.recorder.unstarted
        assert not hook.recorder.is_in_work
        await agent.stop()


@in_loop
async def test_what_is_no_message_at_all_is_counted_as_other() -> None:
    agent = Skipping()
    with hooked(agent) as hook:
        await agent.start()
        for item in (None, "text", 5, object(), ("a", "tuple"), ()):
            agent.input_queue.put_nowait(item)  # type: ignore[arg-type]
        await agent.enqueue_message(note())
        await settle(30)
        assert counts(hook.read()) == {
            "received": 7, "failed": {"_OTHER": 6}, "processed": 1, "waits": 7, "works": 1,
        }  # fmt: skip
        assert [kind.message_type for kind in hook.read().types] == ["_OTHER", "command"]
        await agent.stop()


# -- sent ----------------------------------------------------------------------------------------------


@in_loop
async def test_replies_and_sends_are_counted_by_the_sender() -> None:
    target = Scripted(agent_id="target")
    agent = Scripted([note(MessageType.NLP_RESULT, target_agent_id="target"), note(target_agent_id="nobody")])
    agent.connect(target)
    with hooked(agent) as hook, hooked(target) as other:
        await handle(agent, note())
        assert not await agent.send_message(note())
        assert counts(hook.read()) == {
            "received": 1, "processed": 1, "sent": 1, "undeliverable": {"unknown_target": 2}, "waits": 1, "works": 1,
        }  # fmt: skip
        assert of_type(hook.read(), MessageType.NLP_RESULT).sent == 1
        assert counts(other.read()) == {"received": 1, "queued": 1}


@in_loop
async def test_a_message_whose_time_to_live_is_over_is_undeliverable_as_expired() -> None:
    target = Scripted(agent_id="target")
    agent = Scripted(communication_config=CommunicationConfig(CommunicationMode.MEMORY_CHANNEL))
    agent.connect(target)
    with hooked(agent) as hook:
        message = note(target_agent_id="target", metadata=MessageMetadata(ttl=2))
        assert [await agent.send_message(message) for _ in range(4)] == [True, True, False, False]
        assert counts(hook.read()) == {"sent": 2, "undeliverable": {"expired": 2}}
    assert target.input_queue.qsize() == 2


@in_loop
async def test_a_message_sent_by_a_way_that_does_not_exist_is_undeliverable_by_error() -> None:
    target = Scripted(agent_id="target")
    agent = Scripted(communication_config=CommunicationConfig(CommunicationMode.SOCKET))
    agent.connect(target)
    with hooked(agent) as hook:
        assert not await agent.send_message(note(target_agent_id="target"))
        assert counts(hook.read()) == {"undeliverable": {"error": 1}}


@in_loop
async def test_a_send_that_raises_is_undeliverable_and_raises_the_same() -> None:
    failure = OSError("broken")

    class Broken(Scripted):
        async def send_message(self, message: Message) -> bool:
            raise failure

    agent = Broken()
    with hooked(agent) as hook:
        with pytest.raises(OSError, match="broken") as raised:
            await agent.send_message(note())
        assert raised.value is failure
        assert counts(hook.read()) == {"undeliverable": {"error": 1}}


@in_loop
async def test_a_send_that_is_cancelled_at_a_full_inbox_is_neither_sent_nor_undeliverable() -> None:
    target, agent = Scripted(agent_id="target"), Scripted()
    target.input_queue = asyncio.Queue(1)
    target.input_queue.put_nowait(note())
    agent.connect(target)
    with hooked(agent) as hook:
        sending = asyncio.create_task(agent.send_message(note(target_agent_id="target")))
        await settle()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert counts(hook.read()) == {}


# -- uptime --------------------------------------------------------------------------------------------


@in_loop
async def test_uptime_counts_from_the_last_start() -> None:
    agent, clock = Scripted(), Clock()
    with hooked(agent, clock) as hook:
        assert (hook.read().running, hook.read().uptime_s) == (False, 0.0)
        clock.advance(5.0)
        await agent.start()
        clock.advance(2.0)
        await agent.start()  # does nothing, as it runs
        clock.advance(1.0)
        assert (hook.read().running, hook.read().uptime_s) == (True, 3.0)
        await agent.stop()
        clock.advance(1.0)
        await agent.start()
        clock.advance(0.5)
        assert hook.read().uptime_s == 0.5
        await agent.stop()


@in_loop
async def test_an_agent_that_runs_already_has_the_uptime_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, clock = Scripted(), Clock()
    monkeypatch.setattr(time, "time", lambda: 10_000.0)
    await agent.start()
    monkeypatch.setattr(time, "time", lambda: 10_060.0)
    with hooked(agent, clock) as hook:
        clock.advance(1.0)
        assert hook.read().uptime_s == 61.0
    await agent.stop()


# -- the framework's own, broken monitoring ------------------------------------------------------------


def monitored() -> tuple[Scripted, object]:
    agent, monitor = Scripted(), object()
    agent.enable_performance_monitoring = True
    agent._performance_monitor = monitor
    return agent, monitor


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@in_loop
async def test_without_us_its_own_monitoring_fails_every_message() -> None:
    agent, _monitor = monitored()
    await handle(agent, *(note() for _ in range(20)))
    assert agent.stats.messages_failed == 20
    assert agent.seen == []


@in_loop
async def test_with_us_every_message_succeeds_and_afterwards_everything_is_as_it_was() -> None:
    agent, monitor = monitored()
    before = identity(agent)
    with hooked(agent) as hook:
        await handle(agent, *(note() for _ in range(20)))
        assert counts(hook.read()) == {"received": 20, "processed": 20, "waits": 20, "works": 20}
        assert (agent.stats.messages_processed, agent.stats.messages_failed) == (20, 0)
    assert agent.enable_performance_monitoring is True
    assert agent._performance_monitor is monitor
    after = identity(agent)
    before.pop("tasks"), after.pop("tasks")  # the framework's own doing
    assert after == before


@in_loop
async def test_a_program_that_sets_the_flag_again_while_we_watch_does_not_fail_either() -> None:
    agent, _monitor = monitored()
    with hooked(agent) as hook:
        agent.enable_performance_monitoring = True
        await handle(agent, *(note() for _ in range(20)))
        assert counts(hook.read()) == {"received": 20, "processed": 20, "waits": 20, "works": 20}
    assert agent.enable_performance_monitoring is True


@in_loop
async def test_an_agent_that_starts_while_we_watch_does_not_call_its_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    from amptalk_otel.demo.runtime import agents

    asked: list[Agent] = []

    class Monitor:
        def add_agent(self, agent: Agent) -> None:
            asked.append(agent)

    monkeypatch.setattr(agents, "get_monitor", Monitor)
    agent = Scripted()
    agent.enable_performance_monitoring = True
    with hooked(agent):
        await handle(agent, note())
    assert asked == []
    assert agent._performance_monitor is None
    assert agent.enable_performance_monitoring is True


# -- coming off ----------------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_left_on_agent_and_inbox_even_with_messages_under_way() -> None:
    agent = Scripted(hold)
    await agent.start()
    before, queue_before = identity(agent), identity(agent.input_queue)
    with hooked(agent) as hook:
        await agent.enqueue_message(note())
        await settle()
        assert counts(hook.read()) == {"received": 1, "in_flight": 1, "waits": 1}
        assert identity(agent) != before
    assert identity(agent) == before
    queue_after = identity(agent.input_queue)
    for changing in ("_unfinished_tasks",):
        queue_before.pop(changing), queue_after.pop(changing)
    assert queue_after == queue_before
    await agent.stop()
    assert counts(hook.read()) == {"received": 1, "dropped": {"cancelled": 1}, "waits": 1}


@in_loop
async def test_wrappers_of_others_on_top_of_ours_go_on_and_ours_count_no_more() -> None:
    calls: list[str] = []

    def cover(owner: object, attribute: str) -> None:
        original = getattr(owner, attribute)

        def covering(*args: Any, **kwargs: Any) -> Any:
            calls.append(attribute)
            return original(*args, **kwargs)

        setattr(owner, attribute, covering)

    target = Scripted(agent_id="target")
    agent = Scripted([note(target_agent_id="target")], [note(target_agent_id="target")])
    agent.connect(target)
    with hooked(agent) as hook:
        for attribute in ("process_message", "_process_with_retry", "send_message", "start"):
            cover(agent, attribute)
        cover(agent.input_queue, "_put")
        cover(agent.input_queue, "_get")
        await handle(agent, note())
        expected = ["start", "_put", "_get", "_process_with_retry", "process_message", "send_message"]
        assert calls == expected
        seen = counts(hook.read())
        assert seen == {"received": 1, "processed": 1, "sent": 1, "waits": 1, "works": 1}
    await handle(agent, note())
    assert calls == expected * 2
    assert counts(hook.read()) == seen
    with hooked(agent) as again:
        agent.script = [[note(target_agent_id="target")]]
        await handle(agent, note())
        assert counts(again.read()) == seen  # once, though two of our wrappers lie on each other
    assert counts(hook.read()) == seen
    assert target.input_queue.qsize() == 3


@in_loop
async def test_a_hook_keeps_neither_agent_nor_inbox_alive() -> None:
    agent = Scripted()
    hook = AgentHook(agent, AgentRecorder(agent.agent_id, agent.name), FrameworkAdapter())
    await handle(agent, note())
    await agent.enqueue_message(note())
    await settle()
    gone, inbox_gone = weakref.ref(agent), weakref.ref(agent.input_queue)
    del agent
    gc.collect()
    assert gone() is None
    assert inbox_gone() is None
    assert hook.read().received == 2
    assert hook.read().running is False


@in_loop
async def test_a_hook_does_not_keep_an_agent_alive_that_hangs_in_a_message() -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context["message"]))
    agent = Scripted(hold)
    hook = AgentHook(agent, AgentRecorder(agent.agent_id, agent.name), FrameworkAdapter())
    await agent.start()
    await agent.enqueue_message(note())
    await settle()
    assert hook.read().in_flight == 1
    gone = weakref.ref(agent)
    del agent
    gc.collect()
    assert gone() is None
    assert complaints == ["Task was destroyed but it is pending!"]
    assert (hook.read().in_flight, hook.read().dropped) == (0, 1)


class Guarded(Scripted):
    """Lets nobody cover its processing, and does without a judge, so that attempts are covered from the start."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_process_with_retry":
            raise AttributeError(f"{name} is read-only")
        super().__setattr__(name, value)

    async def _process_with_retry(self, message: Message) -> Any:
        return await self.process_message(message)


@in_loop
async def test_an_agent_whose_processing_can_not_be_covered_has_its_attempts_and_inbox_as_they_were() -> None:
    agent = Guarded()
    inbox = identity(agent.input_queue)
    with hooked(agent) as hook:
        assert identity(agent.input_queue) == inbox
        assert "process_message" not in vars(agent)
        await handle(agent, note())
        assert counts(hook.read()) == {}
    assert len(agent.seen) == 1


@in_loop
async def test_an_agent_that_is_retrying_when_we_leave_has_nothing_of_ours() -> None:
    agent = Scripted(ConnectionError(), hold)
    before = set(vars(agent))
    with hooked(agent) as hook:
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        assert "process_message" in vars(agent)
        hook.release()
        assert set(vars(agent)) == before
        await agent.stop()
