"""When spans begin and end: as the histograms have it, whatever happens in between."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.trace import ReadableSpan

from amptalk_otel._tracing import _agent as agent_tracing
from amptalk_otel.demo.runtime import Message, MessageMetadata
from tests.support import Clock, Scripted, handle, hooked, in_loop, note, settle
from tests.tracing import Spans, attributes_of, connect, events_of, traced

EPOCH_NS = 1_800_000_000 * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The one clock of everything: ours, and the system's that the SDK and we look at."""
    clock = Clock()

    def time_ns() -> int:
        return EPOCH_NS + int((clock.now - 1000.0) * 1e9)

    monkeypatch.setattr(agent_tracing, "time", SimpleNamespace(time_ns=time_ns))
    monkeypatch.setattr(sdk_trace, "time_ns", time_ns)
    return clock


class SlowToBegin(MessageMetadata):
    """Time goes by between taking a message and beginning with it."""

    clock: Clock

    def mark_processing_start(self) -> None:
        super().mark_processing_start()
        self.clock.advance(2.0)


def slow_to_begin(clock: Clock) -> Message:
    metadata = SlowToBegin()
    metadata.clock = clock
    return note(metadata=metadata)


def times_of(span: ReadableSpan) -> tuple[float, float]:
    """Begin and end, in seconds since the test began."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - EPOCH_NS) / 1e9, (span.end_time - EPOCH_NS) / 1e9


def taking(clock: Clock, seconds: float) -> Any:
    async def work(_message: Message) -> None:
        clock.advance(seconds)

    return work


@in_loop
async def test_processing_begins_when_the_message_is_taken_and_lasts_as_long_as_the_histogram_says(
    clock: Clock,
) -> None:
    spans, agent = Spans(), Scripted(taking(clock, 3.0), agent_id="b", name="Bob")
    with traced(spans, agent, clock=clock) as (hook,):
        await agent.enqueue_message(slow_to_begin(clock))
        clock.advance(4.0)
        await agent.start()
        await settle()
        clock.advance(100.0)
        await agent.stop()
        reading = hook.read()
    assert times_of(spans.one("process Bob")) == (4.0, 9.0)
    assert attributes_of(spans.one("process Bob"))["amptalk.message.wait.duration"] == 4.0
    assert (reading.wait_histogram.count, reading.wait_histogram.sum) == (1, 4.0)
    assert (reading.process_histogram.count, reading.process_histogram.sum) == (1, 5.0)


@in_loop
async def test_a_send_begins_before_the_processing_and_ends_when_the_message_is_in_the_inbox(clock: Clock) -> None:
    spans, alice, bob = Spans(), Scripted(name="Alice", agent_id="a"), Scripted(name="Bob", agent_id="b")
    connect(alice, bob)
    put = bob.input_queue.put

    async def put_slowly(item: Message) -> None:
        clock.advance(0.5)
        await put(item)
        clock.advance(0.25)

    bob.input_queue.put = put_slowly  # type: ignore[method-assign]
    with traced(spans, alice, bob, clock=clock) as (_, hook):
        clock.advance(1.0)
        assert await alice.send_message(note(target_agent_id="b"))
        clock.advance(1.0)
        await bob.start()
        await settle()
        await bob.stop()
        reading = hook.read()
    assert times_of(spans.one("send Bob")) == (1.0, 1.75)
    assert times_of(spans.one("process Bob")) == (2.75, 2.75)
    assert attributes_of(spans.one("process Bob"))["amptalk.message.wait.duration"] == 1.25
    assert reading.wait_histogram.sum == 1.25


@in_loop
async def test_all_attempts_and_the_pauses_between_them_are_one_span(clock: Clock) -> None:
    async def fail(_message: Message) -> None:
        clock.advance(1.0)
        raise ConnectionError

    class Patient(Scripted):
        def _retry_delay(self, attempt: int) -> float:
            clock.advance(10.0 * attempt)
            return 0.0

    spans, agent = Spans(), Patient(fail, fail, taking(clock, 1.0), name="Bob")
    with traced(spans, agent, clock=clock) as (hook,):
        await handle(agent, note())
        reading = hook.read()
    begin, end = times_of(spans.one("process Bob"))
    waits = [attributes for name, attributes in events_of(spans.one("process Bob")) if name == "retry"]
    delays = [attributes["amptalk.backoff"] for attributes in waits]
    assert end - begin == reading.process_histogram.sum == 3.0 + sum(delays)
    assert delays == [10.0, 20.0]


@in_loop
async def test_a_cancelled_message_ends_when_it_was_cancelled_and_is_in_no_histogram(clock: Clock) -> None:
    async def work(_message: Message) -> None:
        clock.advance(3.0)
        await asyncio.Event().wait()

    spans, agent = Spans(), Scripted(work, name="Bob")
    with traced(spans, agent, clock=clock) as (hook,):
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        clock.advance(4.0)
        await agent.stop()
        assert hook.read().process_histogram.count == 0
    assert times_of(spans.one("process Bob")) == (0.0, 7.0)


@in_loop
async def test_to_the_nanosecond_the_span_is_as_long_as_the_observation() -> None:
    spans = Spans()
    for index in range(20):
        agent = Scripted(name=f"agent {index}")
        with traced(spans, agent) as (hook,):
            await handle(agent, note())
            reading = hook.read()
        span = spans.one(f"process agent {index}")
        assert span.start_time is not None
        assert span.end_time is not None
        assert reading.process_histogram.count == reading.wait_histogram.count == 1
        assert span.end_time - span.start_time == int(reading.process_histogram.sum * 1e9)
        assert attributes_of(span)["amptalk.message.wait.duration"] == reading.wait_histogram.sum


@in_loop
async def test_a_message_that_was_there_before_we_were_has_no_known_wait(clock: Clock) -> None:
    spans, agent = Spans(), Scripted(name="Bob")
    await agent.enqueue_message(note())
    with traced(spans, agent, clock=clock) as (hook,):
        await handle(agent)
        assert hook.read().wait_histogram.count == 0
    attributes = attributes_of(spans.one("process Bob"))
    assert "amptalk.message.wait.duration" not in attributes


@in_loop
async def test_the_size_is_told_of_the_messages_that_are_measured() -> None:
    spans, agent = Spans(), Scripted(name="Bob")
    with traced(spans, agent) as (hook,):
        hook.recorder._size_sample_every = 2
        await handle(agent, *(note(payload={"text": "x" * 10 * index}) for index in range(5)))
        reading = hook.read()
    sizes = [attributes_of(span).get("messaging.message.body.size") for span in spans.named("process Bob")]
    assert [size is not None for size in sizes] == [True, False, True, False, True]
    (kind,) = reading.types
    assert sum(size for size in sizes if size is not None) == kind.size.sum
    assert len({size for size in sizes if size is not None}) == 3


@in_loop
async def test_without_a_tracer_nobody_asks_for_the_time_of_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise AssertionError

    monkeypatch.setattr(agent_tracing, "time", SimpleNamespace(time_ns=fail))
    agent = Scripted(name="Bob")
    with hooked(agent) as hook:
        await handle(agent, note())
        assert hook.read().processed == 1
