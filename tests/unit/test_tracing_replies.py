"""What handlers return is sent when they are over, and belongs to them: as long as it is there, and no longer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest

from amptalk_otel import instrument_agent
from amptalk_otel._tracing import _agent
from amptalk_otel._tracing._known import Known
from amptalk_otel.demo.runtime import Message, MessageMetadata, MessagePriority, MessageType
from tests.support import CONFIG, Scripted, handle, in_loop, note, provider_and_reader, settle
from tests.tracing import Spans, attributes_of, connect, id_of, parent_of, trace_of, traced


def pair(*script: Any) -> tuple[Scripted, Scripted]:
    alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(*script, agent_id="b", name="Bob")
    connect(alice, bob)
    return alice, bob


@pytest.mark.parametrize(("number", "belong"), [(4, 4), (5, 5), (6, 5)])
def test_of_many_replies_the_first_belong_to_the_handler(
    number: int, belong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_agent, "_MOST_REPLIES", 5)

    @in_loop
    async def run() -> None:
        spans, (alice, bob) = Spans(), pair([note(target_agent_id="a") for _ in range(number)])
        with traced(spans, alice, bob):
            await handle(bob, note())
        handler = id_of(spans.one("process Bob"))
        assert [parent_of(span) == handler for span in spans.named("send Alice")] == [True] * belong + [False] * (
            number - belong
        )

    run()


class TwoLoops(Scripted):
    """Works on two messages at the same time."""

    async def start(self) -> None:
        await super().start()
        self.tasks.append(asyncio.create_task(self._message_loop()))


@in_loop
async def test_replies_that_wait_for_room_belong_to_their_handler_though_another_message_has_begun() -> None:
    spans, (alice, _bob) = Spans(), pair()
    alice.input_queue = asyncio.Queue(1)
    bob = TwoLoops([note(target_agent_id="a") for _ in range(3)], None, agent_id="b", name="Bob")
    connect(alice, bob)
    with traced(spans, alice, bob):
        await bob.start()
        for _ in range(2):
            await bob.enqueue_message(note())
            await settle(20)
        await alice.start()
        await settle(50)
        await alice.stop()
        await bob.stop()
    first, _second = spans.named("process Bob")
    assert [parent_of(span) for span in spans.named("send Alice")] == [id_of(first)] * 3


@dataclass
class Slim:
    """A message that can't be referred to weakly."""

    __slots__ = (
        "message_id",
        "message_type",
        "metadata",
        "payload",
        "priority",
        "source_agent_id",
        "target_agent_id",
    )
    message_id: str
    message_type: MessageType
    source_agent_id: str | None
    target_agent_id: str | None
    priority: MessagePriority
    payload: dict[str, Any]
    metadata: MessageMetadata


class Bearer:
    """In a payload: tells whether a message is there."""


def slim() -> tuple[Slim, weakref.ref[Bearer]]:
    bearer = Bearer()
    fields: Any = ("1", MessageType.COMMAND, None, "a", MessagePriority.LOW, {"bearer": bearer}, MessageMetadata())
    return Slim(*fields), weakref.ref(bearer)


class Returning(Scripted):
    """Does not send what its handlers return."""

    async def _message_loop(self) -> None:
        while self.is_running:
            await self._process_with_retry(await self.input_queue.get())


@in_loop
async def test_replies_are_not_held_but_for_such_that_can_not_be_referred_to_weakly_until_the_next_message() -> None:
    plain, (odd, bearer) = note(target_agent_id="a"), slim()
    there = weakref.ref(plain)
    agent = Returning([plain, odd], None, name="Bob")
    del plain, odd
    with traced(Spans(), agent):
        await agent.start()
        await agent.enqueue_message(note())
        await settle()
        gc.collect()
        assert (there() is None, bearer() is None) == (True, False)
        await agent.enqueue_message(note())
        await settle()
        gc.collect()
        assert bearer() is None
        await agent.stop()


@in_loop
async def test_a_reply_that_can_not_be_referred_to_weakly_belongs_to_its_handler() -> None:
    spans, (odd, _bearer) = Spans(), slim()
    alice, bob = pair([odd])
    with traced(spans, alice, bob):
        await handle(bob, note())
    assert parent_of(spans.one("send Alice")) == id_of(spans.one("process Bob"))


@in_loop
async def test_replies_stay_in_the_trace_when_another_tracer_takes_over_meanwhile() -> None:
    one, other, go_on = Spans(), Spans(), asyncio.Event()

    async def wait(_message: Message) -> list[Message]:
        await go_on.wait()
        return [note(target_agent_id="a")]

    _alice, bob = pair(wait)
    providers = [provider_and_reader()[0] for _ in range(2)]
    first, second = (
        instrument_agent(bob, config=CONFIG, meter_provider=provider, tracer_provider=spans.provider)
        for provider, spans in zip(providers, (one, other), strict=True)
    )
    await bob.start()
    await bob.enqueue_message(note())
    await settle()
    first.uninstrument()
    go_on.set()
    await settle()
    await bob.stop()
    second.uninstrument()
    process, send = one.one("process Bob"), other.one("send Alice")
    assert (trace_of(send), parent_of(send)) == (trace_of(process), id_of(process))
    for provider in providers:
        provider.shutdown()


# -- what is known of objects --------------------------------------------------------------------------


def test_what_is_known_goes_with_the_object_and_is_told_once() -> None:
    known: Known[str] = Known(3)
    first, second = note(), note()
    known.keep(first, "first")
    known.keep(second, "second")
    assert (known.take(first), known.take(first), known.take(note())) == ("first", None, None)
    del second
    assert len(known) == 0


def test_the_oldest_gives_way_and_the_newest_counts() -> None:
    known: Known[int] = Known(3)
    objects: list[Any] = [note(), (1,), note(), [2], note()]
    for number, one in enumerate(objects):
        known.keep(one, number)
    assert (len(known), known.held) == (3, {id(objects[3])})
    known.keep(objects[4], 44)
    assert [known.take(one) for one in objects] == [None, None, None, 3, 44]
    assert known.held == set()


def test_those_that_are_held_are_let_go() -> None:
    known: Known[int] = Known(3)
    objects: list[Any] = [note(), [1]]
    for one in objects:
        known.keep(one, 1)
    known.let_go()
    assert [known.take(one) for one in objects] == [1, None]


def test_an_object_is_not_taken_for_another_that_was_at_its_address() -> None:
    known: Known[int] = Known(3)
    one, other = note(), note()
    known.keep(one, 1)
    known[id(other)] = known.pop(id(one))
    assert known.take(other) is None


def test_replies_that_are_no_messages_are_nothing_special() -> None:
    @in_loop
    async def run() -> None:
        spans, agent = Spans(), Returning(["text", None, 7], (), name="Bob")
        with traced(spans, agent):
            await agent.start()
            for _ in range(2):
                await agent.enqueue_message(note(metadata=MessageMetadata(conversation_id="meeting")))
            await settle()
            await agent.stop()
        found = [attributes_of(span)["messaging.message.conversation_id"] for span in spans.named("process Bob")]
        assert found == ["meeting"] * 2

    run()
