"""Sends that are under way: what is put into an inbox meanwhile is what they send, or something else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from amptalk_otel import instrument_orchestrator
from amptalk_otel._tracing import _current
from amptalk_otel.demo.runtime import (
    CommunicationConfig,
    CommunicationManager,
    CommunicationMode,
    Message,
    MessageMetadata,
    Orchestrator,
)
from tests.support import CONFIG, Scripted, in_loop, note, provider_and_reader, settle
from tests.tracing import Spans, attributes_of, connect, id_of, parent_of, traced


class Bunching(CommunicationManager):
    """As the framework's batching: what fills a batch brings all of it, within its own send."""

    def __init__(self, size: int) -> None:
        super().__init__(CommunicationConfig(CommunicationMode.MEMORY_CHANNEL))
        self.size = size
        self.batch: list[tuple[Message, Any]] = []

    async def send_message(self, message: Message, target_agent: Any) -> bool:
        self.batch.append((message, target_agent))
        if len(self.batch) == self.size:
            for one, target in self.batch:
                await super().send_message(one, target)
        return True


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_a_batch_that_the_last_send_brings_belongs_to_the_sends_of_each(relation: str) -> None:
    @in_loop
    async def run() -> None:
        spans, bunching = Spans(trace_relation=relation), Bunching(3)
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
        connect(alice, bob)
        alice.communication_config, alice.communication_manager = bunching.config, bunching
        with traced(spans, alice, bob):
            await bob.start()
            with spans.root("request"):
                for number in range(3):
                    await alice.send_message(note(message_id=str(number), target_agent_id="b"))
            await settle()
            await bob.stop()
        sends = {attributes_of(span)["messaging.message.id"]: id_of(span) for span in spans.named("send Bob")}
        assert len(sends) == 3
        processes = spans.named("process Bob")
        if relation != "link":
            assert {attributes_of(span)["messaging.message.id"]: parent_of(span) for span in processes} == sends
        if relation != "parent":
            linked = {attributes_of(span)["messaging.message.id"]: span.links[0].context.span_id for span in processes}
            assert linked == sends

    run()


@in_loop
async def test_copies_that_share_their_metadata_belong_to_the_send_of_each() -> None:
    """Each waits for room in the inbox, and carries what the last of them was sent in when it gets there."""
    spans, (provider, _reader) = Spans(), provider_and_reader()
    orchestrator, bob = Orchestrator(name="town"), Scripted(agent_id="b", name="Bob")
    bob.input_queue = asyncio.Queue(1)
    bob.input_queue.put_nowait(note(message_id="before"))
    orchestrator.register_agent(bob)
    original = note(target_agent_id="b")

    async def request(number: int) -> None:
        with spans.root(f"request {number}"):
            await orchestrator.send_message_to_agent(replace(original, message_id=str(number)))

    options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
    with instrument_orchestrator(orchestrator, **options):
        requests = [asyncio.create_task(request(number)) for number in range(3)]
        await settle()
        await orchestrator.start()
        await asyncio.gather(*requests)
        await settle(30)
        await orchestrator.stop()
    sends = {attributes_of(span)["messaging.message.id"]: id_of(span) for span in spans.named("send Bob")}
    parents = {attributes_of(span)["messaging.message.id"]: parent_of(span) for span in spans.named("process Bob")}
    assert parents == {"before": None, **sends}
    assert len(sends) == 3
    provider.shutdown()


class Forwarding(Scripted):
    """Sends each message on to a sink."""

    async def process_message(self, message: Message) -> None:
        message.target_agent_id = "sink"
        await self.send_message(message)


@pytest.mark.parametrize("relation", ["parent", "link", "both"])
def test_clones_that_share_what_they_carry_belong_to_their_broadcast(
    relation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the framework, whose metadata's `to_dict` does not copy what is in it."""
    monkeypatch.setattr(MessageMetadata, "to_dict", lambda self: dict(vars(self)))

    @in_loop
    async def run() -> None:
        spans, (provider, _reader) = Spans(), provider_and_reader()
        orchestrator, sink = Orchestrator(name="town"), Scripted(agent_id="sink", name="sink")
        for name in "ABC":
            agent = Forwarding(agent_id=name, name=name)
            agent.connect(sink)
            orchestrator.register_agent(agent)

        async def take_a_while(**_event: Any) -> None:  # meanwhile the first send on what they got
            await settle()

        orchestrator.register_event_hook("message_routed", take_a_while)
        options: Any = {
            "config": CONFIG.with_changes(trace_relation=relation),
            "meter_provider": provider,
            "tracer_provider": spans.provider,
        }
        with instrument_orchestrator(orchestrator, **options):
            await orchestrator.start()
            await orchestrator.broadcast_message(note())
            await settle(30)
            await orchestrator.stop()
        broadcast, processes = id_of(spans.one("send *")), [spans.one(f"process {name}") for name in "ABC"]
        assert [parent_of(span) for span in processes] == [None if relation == "link" else broadcast] * 3
        if relation != "parent":
            assert [[link.context.span_id for link in span.links] for span in processes] == [[broadcast]] * 3
        provider.shutdown()

    run()


class Wrapping(Scripted):
    """Sends each message inside of another one, which it puts into the inbox itself."""

    async def send_message(self, message: Message) -> bool:
        (target,) = self.connected_agents.values()
        await target.enqueue_message(note(message_id="outside", payload=message.to_dict()))
        return True


@in_loop
async def test_another_message_that_carries_nothing_belongs_to_the_send_that_puts_it() -> None:
    spans, alice, bob = Spans(), Wrapping(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
    alice.connect(bob)
    with traced(spans, alice, bob):
        await bob.start()
        await alice.send_message(note(message_id="inside", target_agent_id="b"))
        await settle()
        await bob.stop()
    assert spans.family() == [("send Bob", None), ("process Bob", "send Bob")]


@in_loop
async def test_sends_that_end_in_any_way_are_not_under_way_any_more() -> None:
    spans, alice = Spans(), Scripted(agent_id="a", name="Alice")
    full, gone = Scripted(agent_id="b", name="Bob"), Scripted(agent_id="c", name="Carol")
    full.input_queue = asyncio.Queue(1)
    connect(alice, full, gone)
    alice.disconnect("c")
    with traced(spans, alice, full):
        assert await alice.send_message(note(target_agent_id="b")) is True
        assert await alice.send_message(note(target_agent_id="c")) is False
        waiting = asyncio.create_task(alice.send_message(note(message_id="waiting", target_agent_id="b")))
        await settle()
        assert "waiting" in _current._sends.values()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    ended = {id_of(span) for span in spans.all()}
    assert len(ended) == 3
    assert not ended & _current._sends.keys()
