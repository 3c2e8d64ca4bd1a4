"""Which span belongs to which: sends, processing, replies, and what happens inside a handler."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from amptalk_otel.demo.runtime import Message, MessageMetadata, MessagePriority, MessageType
from tests.support import Scripted, handle, in_loop, note, settle
from tests.tracing import Spans, attributes_of, connect, context_of, events_of, id_of, parent_of, trace_of, traced


def pair(spans_of_bob: Any = None) -> tuple[Scripted, Scripted]:
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(spans_of_bob, agent_id="b", name="Bob")
    connect(alice, bob)
    return alice, bob


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


async def send_in_a_request(spans: Spans) -> None:
    alice, bob = pair()
    with traced(spans, alice, bob):
        await bob.start()
        with spans.root("request"):
            assert await alice.send_message(note(target_agent_id="b"))
        await settle()
        await bob.stop()


@in_loop
async def test_a_message_is_processed_in_the_trace_in_which_it_was_sent() -> None:
    spans = Spans()
    await send_in_a_request(spans)
    request, send, process = spans.one("request"), spans.one("send Bob"), spans.one("process Bob")
    assert spans.family() == [("request", None), ("send Bob", "request"), ("process Bob", "send Bob")]
    assert trace_of(request) == trace_of(send) == trace_of(process)
    assert [links_of(span) for span in (request, send, process)] == [[], [], []]
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    scope = process.instrumentation_scope
    assert scope is not None
    assert scope.name == "amptalk_otel"


@in_loop
async def test_with_links_each_message_begins_a_trace_that_is_linked_to_its_sending() -> None:
    spans = Spans(trace_relation="link")
    await send_in_a_request(spans)
    request, send, process = spans.one("request"), spans.one("send Bob"), spans.one("process Bob")
    assert spans.family() == [("request", None), ("send Bob", "request"), ("process Bob", None)]
    assert trace_of(process) != trace_of(request)
    assert links_of(process) == [(trace_of(send), id_of(send))]
    assert links_of(send) == []


@in_loop
async def test_with_both_it_is_a_child_that_is_linked() -> None:
    spans = Spans(trace_relation="both")
    await send_in_a_request(spans)
    send, process = spans.one("send Bob"), spans.one("process Bob")
    assert spans.family() == [("request", None), ("send Bob", "request"), ("process Bob", "send Bob")]
    assert links_of(process) == [(trace_of(send), id_of(send))]


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_what_comes_from_nowhere_begins_a_trace_without_a_link(relation: str) -> None:
    @in_loop
    async def run() -> None:
        spans, agent = Spans(trace_relation=relation), Scripted(name="Bob")
        with traced(spans, agent):
            await handle(agent, note(), note())
        first, second = spans.named("process Bob")
        assert (first.parent, second.parent) == (None, None)
        assert trace_of(first) != trace_of(second)
        assert links_of(first) + links_of(second) == []

    run()


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_baggage_goes_on_whatever_the_relation(relation: str) -> None:
    seen: list[object] = []

    async def look(_message: Message) -> None:
        seen.append(baggage.get_baggage("tenant"))

    @in_loop
    async def run() -> None:
        alice, bob = pair(look)
        with traced(Spans(trace_relation=relation), alice, bob):
            await bob.start()
            token = context.attach(baggage.set_baggage("tenant", "town hall"))
            await alice.send_message(note(target_agent_id="b"))
            context.detach(token)
            await settle()
            await bob.stop()

    run()
    assert seen == ["town hall"]


@in_loop
async def test_what_a_handler_returns_is_sent_later_but_belongs_to_it() -> None:
    spans = Spans()
    alice, bob = pair()

    async def answer(message: Message) -> list[Message]:
        return [message.create_reply(MessageType.TRANSCRIPTION_RESULT, {}) for _ in range(2)]

    bob.script = [answer]
    with traced(spans, alice, bob):
        await alice.start()
        await bob.start()
        await alice.send_message(note(source_agent_id="a", target_agent_id="b"))
        await settle(30)
        await alice.stop()
        await bob.stop()
    process = spans.one("process Bob")
    replies = spans.named("send Alice")
    assert [parent_of(span) for span in replies] == [id_of(process)] * 2
    assert process.end_time is not None
    assert all(span.start_time is not None and span.start_time >= process.end_time for span in replies)
    assert [parent_of(span) for span in spans.named("process Alice")] == [id_of(span) for span in replies]
    assert {trace_of(span) for span in spans.all()} == {trace_of(process)}


@in_loop
async def test_spans_of_handlers_and_of_tasks_that_they_start_are_children_of_the_processing() -> None:
    spans, tasks = Spans(), []

    async def beside() -> None:
        await asyncio.sleep(0)
        with spans.inside("beside"):
            pass

    async def work(_message: Message) -> None:
        tasks.append(asyncio.create_task(beside()))
        with spans.inside("within"):
            await asyncio.sleep(0)

    agent = Scripted(work, work, name="Bob")
    with traced(spans, agent):
        await handle(agent, note(), note())
        await asyncio.gather(*tasks)
    processes = [id_of(span) for span in spans.named("process Bob")]
    assert [parent_of(span) for span in spans.named("within")] == processes
    assert [parent_of(span) for span in spans.named("beside")] == processes


@in_loop
async def test_between_messages_no_span_is_current_in_the_loop() -> None:
    spans, seen = Spans(), []
    agent = Scripted(name="Bob")
    former = agent.input_queue.task_done

    def task_done() -> None:
        seen.append(trace.get_current_span())
        former()

    agent.input_queue.task_done = task_done  # type: ignore[method-assign]
    with traced(spans, agent):
        await handle(agent, note(), note())
    assert seen[:2] == [trace.INVALID_SPAN, trace.INVALID_SPAN]
    assert len(spans.named("process Bob")) == 2


@in_loop
async def test_a_message_processed_within_another_is_no_message_of_its_own() -> None:
    """A handler that calls `process_message` for a part of its work, which did not come through the inbox."""
    spans = Spans()

    async def outer(message: Message) -> Any:
        with spans.inside("part"):
            return await agent._process_with_retry(message)

    async def inner(_message: Message) -> None:
        with spans.inside("inner"):
            pass

    agent = Scripted(outer, inner, name="Bob")
    with traced(spans, agent) as (hook,):
        await handle(agent, note())
        assert hook.read().processed == 1
    assert spans.family() == [("process Bob", None), ("part", "process Bob"), ("inner", "part")]


@in_loop
async def test_the_attributes_are_those_of_the_conventions_and_no_payload() -> None:
    spans = Spans()
    alice, bob = pair()
    message = note(
        source_agent_id="a",
        target_agent_id="b",
        priority=MessagePriority.HIGH,
        payload={"text": "s3cret"},
        metadata=MessageMetadata(conversation_id="meeting"),
    )
    with traced(spans, alice, bob):
        await bob.start()
        await alice.send_message(message)
        await settle()
        await bob.stop()
    common = {
        "messaging.system": "amptalk",
        "messaging.destination.name": "Bob",
        "messaging.message.id": message.message_id,
        "messaging.message.conversation_id": "meeting",
        "message.type": "command",
        "amptalk.message.priority": "high",
    }
    assert attributes_of(spans.one("send Bob")) == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "gen_ai.agent.id": "a",
        "gen_ai.agent.name": "Alice",
    }
    process = attributes_of(spans.one("process Bob"))
    assert process.pop("amptalk.message.wait.duration") > 0.0
    assert process == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.body.size": len('{"text": "s3cret"}'),
        "gen_ai.agent.id": "b",
        "gen_ai.agent.name": "Bob",
    }
    assert "s3cret" not in "".join(span.to_json() for span in spans.all())
    assert [events_of(span) for span in spans.all()] == [[], []]


@in_loop
async def test_an_id_that_is_empty_is_not_told() -> None:
    spans, agent = Spans(), Scripted(name="Bob")
    with traced(spans, agent):
        await handle(agent, note(message_id="", metadata=MessageMetadata(conversation_id="")))
    assert [name for name in attributes_of(spans.one("process Bob")) if name.endswith("id")] == ["gen_ai.agent.id"]


@in_loop
async def test_the_size_of_a_payload_is_not_told_of_another_message_at_its_address() -> None:
    spans, bob = Spans(), Scripted(name="Bob")
    measured, other = note(), note()
    with traced(spans, bob) as (hook,):
        assert hook._tracing is not None
        hook._tracing.sized(measured, 5)
        hook._tracing._sizes[id(other)] = hook._tracing._sizes.pop(id(measured))
        record = hook.recorder.record_of(other)
        record.next_size_at = 100  # it is not measured itself
        await handle(bob, other)
        hook._tracing.sized(other, 7)
        await handle(bob, other)
    sizes = [attributes_of(span).get("messaging.message.body.size") for span in spans.named("process Bob")]
    assert sizes == [None, 7]


@in_loop
async def test_what_is_sent_inside_a_handler_belongs_to_what_is_current_there() -> None:
    spans = Spans()
    alice, bob = pair()

    async def forward(_message: Message) -> None:
        with spans.inside("looking up"):
            await bob.send_message(note(target_agent_id="a"))

    bob.script = [forward]
    with traced(spans, alice, bob):
        await handle(bob, note())
    assert spans.family() == [("process Bob", None), ("looking up", "process Bob"), ("send Alice", "looking up")]
    assert alice.input_queue.qsize() == 1
    assert context_of(spans.one("send Alice")).is_valid
