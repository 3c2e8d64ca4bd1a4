"""How spans tell what became of a message: failures, retries, cancellation, sends that reached nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from amptalk_otel import instrument_orchestrator
from amptalk_otel.demo.runtime import (
    Agent,
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    Message,
    MessageMetadata,
    Orchestrator,
)
from tests.support import CONFIG, Clock, Scripted, counts, handle, hold, in_loop, note, provider_and_reader, settle
from tests.tracing import Spans, attributes_of, connect, events_of, id_of, parent_of, status_of, text_of, traced

SECRET = "s3cret"


async def outcome_of(*script: Any, clock: Clock | None = None) -> tuple[Any, dict[str, Any]]:
    """The span and the counts of one message, at an agent that plays a script."""
    spans, agent = Spans(), Scripted(*script, name="Bob")
    agent.max_retry_attempts = 2
    with traced(spans, agent, clock=clock) as (hook,):
        await handle(agent, note(payload={"text": SECRET}))
        return spans.one("process Bob"), counts(hook.read())


# -- failure -------------------------------------------------------------------------------------------


@in_loop
async def test_a_failure_is_told_by_its_type_and_place_but_not_by_its_message() -> None:
    span, counted = await outcome_of(ValueError(f"can't read {SECRET}"))
    assert status_of(span) == (StatusCode.ERROR, "ValueError")
    assert attributes_of(span)["error.type"] == "ValueError" == next(iter(counted["failed"]))
    failed, exception = events_of(span)
    assert failed == ("attempt failed", {"error.type": "ValueError", "amptalk.attempt": 1})
    assert exception[0] == "exception"
    assert set(exception[1]) == {"exception.type", "exception.stacktrace"}
    assert exception[1]["exception.type"] == "ValueError"
    assert "in process_message" in exception[1]["exception.stacktrace"]
    assert SECRET not in text_of(span)


@in_loop
async def test_a_failure_caused_by_another_quotes_neither() -> None:
    async def fail(message: Message) -> None:
        try:
            {}[message.payload["text"]]
        except KeyError as error:
            raise ValueError(str(error)) from error

    span, _counted = await outcome_of(fail)
    assert status_of(span) == (StatusCode.ERROR, "ValueError")
    assert SECRET not in text_of(span)


@in_loop
async def test_a_class_of_exceptions_with_a_strange_name_is_told_as_the_metrics_tell_it() -> None:
    strange = type("é" * 300, (ValueError,), {})
    span, counted = await outcome_of(strange())
    (kind,) = counted["failed"]
    assert attributes_of(span)["error.type"] == status_of(span)[1] == kind
    assert len(kind) <= 128


@in_loop
async def test_success_has_no_status_of_its_own_and_no_events() -> None:
    span, _counted = await outcome_of(None)
    assert (status_of(span), events_of(span)) == ((StatusCode.UNSET, None), [])
    assert "error.type" not in attributes_of(span)


@in_loop
async def test_an_exception_that_is_no_error_is_told_and_passes() -> None:
    class Stop(BaseException):
        pass

    spans, agent = Spans(), Scripted(Stop(SECRET), name="Bob")
    with traced(spans, agent):
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        (task,) = agent.tasks
        assert isinstance(task.exception(), Stop)
    span = spans.one("process Bob")
    assert status_of(span) == (StatusCode.ERROR, Stop.__qualname__)
    assert attributes_of(span)["error.type"] == Stop.__qualname__
    assert SECRET not in text_of(span)


# -- retries -------------------------------------------------------------------------------------------


@in_loop
async def test_attempts_are_events_of_one_span() -> None:
    clock = Clock()

    class Patient(Scripted):
        def _retry_delay(self, attempt: int) -> float:
            clock.advance(0.5 * attempt)
            return 0.0

    spans = Spans()
    agent = Patient(ConnectionError(SECRET), TimeoutError(SECRET), None, name="Bob")
    with traced(spans, agent, clock=clock) as (hook,):
        await handle(agent, note(), note())
        assert counts(hook.read())["retries"] == {"ConnectionError": 1, "TimeoutError": 1}
    span, other = spans.named("process Bob")
    assert events_of(span) == [
        ("attempt failed", {"error.type": "ConnectionError", "amptalk.attempt": 1}),
        ("retry", {"amptalk.attempt": 2, "amptalk.backoff": 0.5}),
        ("attempt failed", {"error.type": "TimeoutError", "amptalk.attempt": 2}),
        ("retry", {"amptalk.attempt": 3, "amptalk.backoff": 1.0}),
    ]
    assert status_of(span) == (StatusCode.UNSET, None)
    assert "error.type" not in attributes_of(span)
    assert events_of(other) == []
    assert SECRET not in text_of(span)


@in_loop
async def test_attempts_that_all_fail_are_one_failure() -> None:
    span, counted = await outcome_of(*(OSError() for _ in range(3)))
    assert [name for name, _attributes in events_of(span)] == [
        "attempt failed", "retry", "attempt failed", "retry", "attempt failed", "exception",
    ]  # fmt: skip
    attempts = [attributes["amptalk.attempt"] for name, attributes in events_of(span) if name != "exception"]
    assert attempts == [1, 2, 2, 3, 3]
    assert status_of(span) == (StatusCode.ERROR, "OSError")
    assert counted["retries"] == {"OSError": 2}


@in_loop
async def test_spans_made_in_attempts_are_children_of_the_one_span() -> None:
    spans = Spans()

    async def attempt(_message: Message) -> None:
        with spans.inside("attempt"):
            pass
        if len(spans.named("attempt")) < 3:
            raise ConnectionError

    agent = Scripted(attempt, attempt, attempt, name="Bob")
    with traced(spans, agent):
        await handle(agent, note())
    assert [parent_of(span) for span in spans.named("attempt")] == [id_of(spans.one("process Bob"))] * 3


# -- cancellation --------------------------------------------------------------------------------------


@in_loop
async def test_cancellation_is_a_state_and_no_error() -> None:
    spans, agent = Spans(), Scripted(hold, name="Bob")
    with traced(spans, agent) as (hook,):
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        await agent.stop()
        assert counts(hook.read())["dropped"] == {"cancelled": 1}
    span = spans.one("process Bob")
    assert attributes_of(span)["amptalk.message.state"] == "cancelled"
    assert (status_of(span), events_of(span)) == ((StatusCode.UNSET, None), [])
    assert "error.type" not in attributes_of(span)


@in_loop
async def test_a_send_that_is_cancelled_is_told_so() -> None:
    spans = Spans()
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    bob.input_queue = asyncio.Queue(1)
    connect(alice, bob)
    with traced(spans, alice, bob):
        await alice.send_message(note(target_agent_id="b"))
        sending = asyncio.create_task(alice.send_message(note(target_agent_id="b")))
        await settle()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    delivered, cancelled = spans.named("send Bob")
    assert "amptalk.message.state" not in attributes_of(delivered)
    assert attributes_of(cancelled)["amptalk.message.state"] == "cancelled"
    assert (status_of(cancelled), events_of(cancelled)) == ((StatusCode.UNSET, None), [])


# -- sends that reach nobody ---------------------------------------------------------------------------


async def send_by(agent: Agent, message: Message, *others: Agent) -> Any:
    spans = Spans()
    with traced(spans, agent, *others):
        assert await agent.send_message(message) is False
    (span,) = spans.all()
    return span


@in_loop
async def test_a_send_to_nobody_that_is_known_failed() -> None:
    span = await send_by(Scripted(name="Alice"), note(target_agent_id="nobody"))
    assert span.name == "send nobody"
    assert attributes_of(span)["error.type"] == "unknown_target"
    assert status_of(span) == (StatusCode.ERROR, "unknown_target")
    assert events_of(span) == []


@in_loop
async def test_a_message_that_was_passed_on_too_often_expired() -> None:
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    alice.communication_config = CommunicationConfig(CommunicationMode.MEMORY_CHANNEL)
    alice.communication_manager = CommunicationManager(alice.communication_config)
    connect(alice, bob)
    span = await send_by(alice, note(target_agent_id="b", metadata=MessageMetadata(hop_count=10, ttl=10)), bob)
    assert (span.name, attributes_of(span)["error.type"]) == ("send Bob", "expired")
    assert status_of(span) == (StatusCode.ERROR, "expired")


@in_loop
async def test_a_send_that_returns_false_for_no_known_reason_is_an_error() -> None:
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    connect(alice, bob)

    async def refuse(_message: Message) -> None:
        raise RuntimeError(SECRET)

    bob.enqueue_message = refuse  # type: ignore[method-assign,assignment]
    span = await send_by(alice, note(target_agent_id="b"), bob)
    assert attributes_of(span)["error.type"] == "error"
    assert status_of(span) == (StatusCode.ERROR, "error")
    assert SECRET not in text_of(span)


@in_loop
async def test_a_send_that_raises_is_told_by_the_type_of_what_it_raises() -> None:
    class Cut(Scripted):
        async def send_message(self, message: Message) -> bool:
            raise BrokenPipeError(SECRET)

    spans, agent = Spans(), Cut(name="Alice")
    with traced(spans, agent), pytest.raises(BrokenPipeError):
        await agent.send_message(note(target_agent_id="b"))
    (span,) = spans.all()
    assert status_of(span) == (StatusCode.ERROR, "BrokenPipeError")
    assert attributes_of(span)["error.type"] == "BrokenPipeError"
    assert [name for name, _attributes in events_of(span)] == ["exception"]
    assert SECRET not in text_of(span)


@in_loop
async def test_the_orchestrators_sends_are_told_in_the_same_words() -> None:
    spans, (provider, _reader) = Spans(), provider_and_reader()
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="a", name="Ann")
    orchestrator.register_agent(agent, ["quiet"])
    options = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
    with instrument_orchestrator(orchestrator, **options):  # type: ignore[arg-type]
        assert await orchestrator.send_message_to_agent(note(target_agent_id="a"))
        assert not await orchestrator.send_message_to_agent(note(target_agent_id="z"))
        old = note(target_agent_id="a", metadata=MessageMetadata(hop_count=10))
        assert not await orchestrator.send_message_to_agent(old)
        assert await orchestrator.send_message_to_group(note(), "quiet")
        assert await orchestrator.broadcast_message(message=note())
        assert not await orchestrator.send_message_to_group(note(), group_id="nobody")
    told = [(span.name, attributes_of(span).get("error.type")) for span in spans.all()]
    assert told == [
        ("send Ann", None), ("send z", "unknown_target"), ("send Ann", "expired"),
        ("send quiet", None), ("send *", None), ("send nobody", "unknown_target"),
    ]  # fmt: skip
    for span in spans.all():
        assert not {"gen_ai.agent.id", "gen_ai.agent.name"} & set(attributes_of(span))
        assert attributes_of(span)["messaging.destination.name"] == span.name.removeprefix("send ")
        assert attributes_of(span)["messaging.operation.name"] == "send"
    provider.shutdown()


# -- the less usual ways -------------------------------------------------------------------------------


class OwnWay(Scripted):
    """Retries in a way of its own."""

    async def _process_with_retry(self, message: Message) -> Any:
        for _ in range(3):
            try:
                return await self.process_message(message)
            except OSError:
                continue
        raise RuntimeError


@in_loop
async def test_attempts_of_an_agent_with_its_own_way_are_told_and_forgotten_afterwards() -> None:
    spans, agent = Spans(), OwnWay(OSError(), None, *[OSError()] * 3, name="Bob")
    with traced(spans, agent) as (hook,):
        await handle(agent, note(), note())
        first, second = spans.named("process Bob")
        assert [name for name, _attributes in events_of(first)] == ["attempt failed", "retry"]
        assert [name for name, _attributes in events_of(second)] == [*["attempt failed", "retry"] * 2, "attempt failed",
                                                                     "exception"]  # fmt: skip
        assert (hook._processing._in_work, hook._processing._attempts) == ({}, {})
        assert counts(hook.read())["retries"] == {"OSError": 3}


@in_loop
async def test_retries_of_each_message_are_told() -> None:
    spans, agent = Spans(), Scripted(*[ConnectionError(), None] * 2, name="Bob")
    with traced(spans, agent):
        await handle(agent, note(), note())
        for span in spans.named("process Bob"):
            assert [name for name, _attributes in events_of(span)] == ["attempt failed", "retry"]


@pytest.mark.parametrize("outcome", [None, ValueError()])
@in_loop
async def test_nothing_is_kept_of_a_message_that_was_retried(outcome: ValueError | None) -> None:
    spans, agent = Spans(), Scripted(ConnectionError(), outcome)
    with traced(spans, agent) as (hook,):
        await handle(agent, note())
        assert hook._processing._attempts == {}
        assert "process_message" not in vars(agent)


class TwoAtATime(Scripted):
    """Takes two messages before it works on the first."""

    async def _message_loop(self) -> None:
        while self.is_running:
            for message in [await self.input_queue.get() for _ in range(2)]:
                await self._process_with_retry(message)
                self.input_queue.task_done()


@in_loop
async def test_messages_that_are_taken_together_have_their_spans() -> None:
    spans, agent = Spans(), TwoAtATime(name="Bob")
    with traced(spans, agent) as (hook,):
        await handle(agent, note(), note())
        assert spans.names() == ["process Bob"] * 2
        assert counts(hook.read()) == {"received": 2, "processed": 2, "waits": 2, "works": 2}
