"""Where a message's context comes from: whoever puts it into the inbox, whatever the inbox is like."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context, get_current
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from amptalk_otel._tracing._carrier import SENDER
from amptalk_otel.demo.runtime import (
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    Message,
    MessageMetadata,
)
from tests.support import Scripted, counts, in_loop, note, settle
from tests.tracing import KEY, Spans, attributes_of, connect, context_of, id_of, parent_of, trace_of, traced, use


def numbered(number: int) -> Message:
    return note(message_id=str(number), payload={"number": number})


def origins(spans: Spans) -> dict[str, str]:
    """By message id: the name of the program's span that its processing belongs to."""
    names = {id_of(span): span.name for span in spans.all()}
    return {
        attributes_of(span)["messaging.message.id"]: names.get(parent_of(span) or 0, "none")
        for span in spans.named("process Bob")
    }


def as_from_another_process(message: Message) -> str:
    fields = message.to_dict()
    fields["metadata"]["checkpoint_data"][KEY][SENDER] = "0123456789abcdef"
    return json.dumps(fields)


class TupleAgent(Scripted):
    """Takes (priority, number, message) from its inbox."""

    async def _message_loop(self) -> None:
        queue: Any = self.input_queue
        while self.is_running:
            *_order, message = await queue.get()
            await self._process_with_retry(message)
            queue.task_done()


@pytest.mark.parametrize("kind", [asyncio.Queue, asyncio.PriorityQueue, asyncio.LifoQueue])
def test_each_message_belongs_to_whoever_put_it_whatever_the_order(kind: type[asyncio.Queue[Any]]) -> None:
    @in_loop
    async def run() -> None:
        spans, agent = Spans(), TupleAgent(name="Bob")
        agent.input_queue = kind()
        with traced(spans, agent) as (hook,):
            for number in (3, 1, 2):
                with spans.root(f"request {number}"):
                    item: Any = (number, f"order {number}", numbered(number))
                    await agent.input_queue.put(item)
            await agent.start()
            await settle()
            await agent.stop()
            assert counts(hook.read()) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
        assert origins(spans) == {str(number): f"request {number}" for number in (1, 2, 3)}
        order = [attributes_of(span)["messaging.message.id"] for span in spans.named("process Bob")]
        assert order == {"Queue": list("312"), "PriorityQueue": list("123"), "LifoQueue": list("213")}[kind.__name__]
        assert all("amptalk.message.wait.duration" in attributes_of(span) for span in spans.named("process Bob"))

    run()


class Batching(CommunicationManager):
    """Collects messages; a task that the first send starts brings them to their inboxes."""

    def __init__(self) -> None:
        super().__init__(CommunicationConfig(CommunicationMode.MEMORY_CHANNEL))
        self.batch: list[tuple[Message, Any]] = []
        self.flush = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def send_message(self, message: Message, target_agent: Any) -> bool:
        if self.task is None:
            self.task = asyncio.create_task(self.bring())
        self.batch.append((message, target_agent))
        return True

    async def bring(self) -> None:
        await self.flush.wait()
        for message, target in self.batch:
            await target.enqueue_message(message)


@pytest.mark.parametrize("first", ["that ended", "that goes on", "that is not sampled"])
def test_a_batch_belongs_to_who_sent_each_and_not_to_the_span_that_its_task_was_started_in(first: str) -> None:
    @in_loop
    async def run() -> None:
        spans, batching = Spans(), Batching()
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
        connect(alice, bob)
        alice.communication_config, alice.communication_manager = batching.config, batching
        unsampled = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(0))
        with traced(spans, alice, bob), ExitStack() as going_on:
            await bob.start()
            for number in range(3):
                with ExitStack() as request:
                    if number == 0 and first == "that is not sampled":
                        request.enter_context(use(set_span_in_context(NonRecordingSpan(unsampled), Context())))
                    else:
                        stack = going_on if number == 0 and first == "that goes on" else request
                        stack.enter_context(spans.root(f"request {number}"))
                    await alice.send_message(note(message_id=str(number), target_agent_id="b"))
            batching.flush.set()
            await settle()
            await bob.stop()
        sends = {attributes_of(span)["messaging.message.id"]: id_of(span) for span in spans.named("send Bob")}
        assert sorted(sends) == (["1", "2"] if first == "that is not sampled" else ["0", "1", "2"])
        belongs = {attributes_of(span)["messaging.message.id"]: parent_of(span) for span in spans.named("process Bob")}
        assert belongs == sends

    run()


@in_loop
async def test_a_batch_that_is_put_in_a_span_of_its_own_belongs_to_who_sent_each() -> None:
    spans, batching = Spans(), Batching()
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    connect(alice, bob)
    alice.communication_config, alice.communication_manager = batching.config, batching
    with traced(spans, alice, bob):
        await bob.start()
        for number in range(3):
            with spans.root(f"request {number}"):
                await alice.send_message(note(message_id=str(number), target_agent_id="b"))
        with spans.root("batch"):
            for message, target in batching.batch:
                await target.enqueue_message(message)
        await settle()
        await bob.stop()
    assert batching.task is not None
    batching.task.cancel()
    sends = {attributes_of(span)["messaging.message.id"]: span for span in spans.named("send Bob")}
    for process in spans.named("process Bob"):
        send = sends[attributes_of(process)["messaging.message.id"]]
        assert (parent_of(process), trace_of(process)) == (id_of(send), trace_of(send))
    assert len({trace_of(span) for span in spans.named("process Bob")}) == 3


@pytest.mark.parametrize("carried", [{"traceparent": "garbage"}, {"traceparent": "0" * 20_000}, {"tracestate": "a=b"}])
def test_a_message_that_carries_nothing_that_can_be_read_is_as_one_that_carries_nothing(carried: Any) -> None:
    @in_loop
    async def run() -> None:
        spans = Spans()
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
        connect(alice, bob)
        with traced(spans, alice, bob):
            await bob.start()
            for number, act in enumerate((bob.enqueue_message, alice.send_message)):
                message = note(message_id=str(number), target_agent_id="b")
                message.metadata.checkpoint_data[KEY] = dict(carried)
                with spans.root("request"):
                    await act(message)
            await settle()
            await bob.stop()
        assert sorted(spans.family(), key=str) == [
            ("process Bob", "request"), ("process Bob", "send Bob"),
            ("request", None), ("request", None), ("send Bob", "request"),
        ]  # fmt: skip

    run()


@pytest.mark.parametrize("way", ["from who puts it", "over a wire", "by a send"])
def test_baggage_that_is_carried_without_a_trace_does_not_cut_the_trace(way: str) -> None:
    got: list[object] = []

    async def look(_message: Message) -> None:
        got.append(baggage.get_baggage("tenant"))

    @in_loop
    async def run() -> None:
        spans = Spans(propagators=("baggage",))
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(look, agent_id="b", name="Bob")
        connect(alice, bob)
        message = note(target_agent_id="b")
        with traced(spans, alice, bob):
            await bob.start()
            with spans.root("request"), use(baggage.set_baggage("tenant", "acme", get_current())):
                if way == "by a send":
                    await alice.send_message(message)
                else:
                    spans.tracer.carrier.inject(message, get_current())
            if way != "by a send":
                wire = as_from_another_process(message) if way == "over a wire" else message.to_json()
                with spans.root("reading the socket"):
                    await bob.enqueue_message(Message.from_json(wire))
            await settle()
            await bob.stop()
        (process,) = [parent for name, parent in spans.family() if name == "process Bob"]
        assert process == ("send Bob" if way == "by a send" else "reading the socket")

    run()
    assert got == ["acme"]


@in_loop
async def test_a_message_that_carries_nothing_belongs_to_whoever_puts_it() -> None:
    spans, agent = Spans(), Scripted(name="Bob")
    with traced(spans, agent):
        await agent.start()
        with spans.root("reading the socket"):
            agent.input_queue.put_nowait(numbered(1))
        agent.input_queue.put_nowait(numbered(2))
        await settle()
        await agent.stop()
    assert origins(spans) == {"1": "reading the socket", "2": "none"}
    assert spans.named("process Bob")[1].parent is None


@in_loop
async def test_what_comes_over_a_wire_goes_on_in_the_trace_that_it_carries() -> None:
    """The sender is in another process: the reader's own span, in another trace, is not the parent."""
    theirs, ours = Spans(), Spans()
    alice, bob, stub = (Scripted(agent_id=name[0].lower(), name=name) for name in ("Alice", "Bob", "Bob"))
    alice.connect(stub)
    with traced(theirs, alice), theirs.root("request"):
        message = note(target_agent_id="b")
        await alice.send_message(message)
    wire = as_from_another_process(message)
    with traced(ours, bob):
        await bob.start()
        with ours.root("reading the socket"):
            await bob.enqueue_message(Message.from_json(wire))
        await settle()
        await bob.stop()
    send, process = theirs.one("send Bob"), ours.one("process Bob")
    assert (trace_of(process), parent_of(process)) == (trace_of(send), id_of(send))
    assert process.parent is not None
    assert process.parent.is_remote


@in_loop
async def test_a_reader_that_goes_on_with_the_trace_itself_is_the_parent() -> None:
    theirs, ours = Spans(), Spans()
    alice, bob, stub = (Scripted(agent_id=name[0].lower(), name=name) for name in ("Alice", "Bob", "Bob"))
    alice.connect(stub)
    with traced(theirs, alice):
        message = note(target_agent_id="b")
        await alice.send_message(message)
    with traced(ours, bob):
        await bob.start()
        carried = ours.tracer.carrier.extract(message, Context())
        with ours._program.start_as_current_span("reading the socket", carried):
            await bob.enqueue_message(Message.from_json(as_from_another_process(message)))
        await settle()
        await bob.stop()
    process = ours.one("process Bob")
    assert parent_of(process) == id_of(ours.one("reading the socket"))
    assert trace_of(process) == trace_of(theirs.one("send Bob"))


@in_loop
async def test_messages_that_are_serialised_on_the_way_stay_in_their_trace() -> None:
    spans = Spans()
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    alice.communication_config = CommunicationConfig(CommunicationMode.MEMORY_CHANNEL)
    alice.communication_manager = CommunicationManager(alice.communication_config)
    connect(alice, bob)
    with traced(spans, alice, bob):
        await bob.start()
        for number in range(2):
            with spans.root(f"request {number}"):
                assert await alice.send_message(note(target_agent_id="b"))
        await settle()
        await bob.stop()
    assert spans.family() == [
        ("request 0", None), ("send Bob", "request 0"), ("request 1", None), ("send Bob", "request 1"),
        ("process Bob", "send Bob"), ("process Bob", "send Bob"),
    ]  # fmt: skip
    assert [trace_of(span) for span in spans.named("process Bob")] == [
        trace_of(span) for span in spans.named("send Bob")
    ]


@in_loop
async def test_a_message_that_is_sent_again_belongs_to_its_latest_send() -> None:
    spans = Spans()
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    connect(alice, bob)
    message = note(target_agent_id="b", metadata=MessageMetadata(conversation_id="meeting"))
    with traced(spans, alice, bob):
        await bob.start()
        for number in range(2):
            with spans.root(f"request {number}"):
                await alice.send_message(message)
                await settle()
        await bob.stop()
    sends, processes = spans.named("send Bob"), spans.named("process Bob")
    assert [parent_of(span) for span in processes] == [id_of(span) for span in sends]
    assert trace_of(sends[0]) != trace_of(sends[1])
    flags = context_of(sends[1]).trace_flags  # newer versions of the SDK set more than `sampled`
    carried = message.metadata.checkpoint_data[KEY]["traceparent"]
    assert carried == f"00-{trace_of(sends[1]):032x}-{id_of(sends[1]):016x}-{flags:02x}"
    assert flags.sampled


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_what_a_handler_forwards_without_a_send_belongs_to_the_handler(relation: str) -> None:
    """It still carries the context of its own send, which the handler goes on with."""

    @in_loop
    async def run() -> None:
        spans = Spans(trace_relation=relation)
        alice, bob, carol = (Scripted(agent_id=name[0].lower(), name=name) for name in ("Alice", "Bob", "Carol"))
        connect(alice, bob, carol)

        async def forward(message: Message) -> None:
            await carol.enqueue_message(message)

        bob.script = [forward]
        with traced(spans, alice, bob, carol):
            await bob.start()
            await carol.start()
            with spans.root("request"):
                await alice.send_message(note(target_agent_id="b"))
            await settle()
            await bob.stop()
            await carol.stop()
        handler, forwarded = spans.one("process Bob"), spans.one("process Carol")
        of = trace_of(handler), id_of(handler)
        assert (parent_of(forwarded) == id_of(handler)) is (relation != "link")
        linked = [(link.context.trace_id, link.context.span_id) for link in forwarded.links]
        assert linked == ([] if relation == "parent" else [of])
        assert (trace_of(forwarded) == trace_of(handler)) is (relation != "link")

    run()


@in_loop
async def test_an_item_that_is_no_message_is_counted_and_traced_all_the_same() -> None:
    spans, seen = Spans(), []

    class Tolerant(Scripted):
        async def _message_loop(self) -> None:
            while self.is_running:
                await self._process_with_retry(await self.input_queue.get())

        async def _process_with_retry(self, message: Any) -> Any:
            seen.append(message)

    agent = Tolerant(name="Bob")
    items: list[Any] = ["text", 7, {"message_type": "x"}, (), None]
    with traced(spans, agent) as (hook,):
        await agent.start()
        for item in items:
            agent.input_queue.put_nowait(item)
        await settle(30)
        await agent.stop()
        assert counts(hook.read())["processed"] == len(items)
    assert seen == items
    found = spans.named("process Bob")
    assert [attributes_of(span)["message.type"] for span in found] == ["_OTHER"] * len(items)
    assert "messaging.message.id" not in attributes_of(found[0])
