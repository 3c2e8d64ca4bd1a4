"""Generation "core": a trace goes through outboxes and a router that knows nothing of it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import StatusCode

from amptalk_otel import instrument_agent, instrument_orchestrator
from amptalk_otel._tracing import _tracer
from tests.core_runtime import CoreAgent, CoreMessage, CoreOrchestrator
from tests.core_workload import SINK, Program
from tests.support import CONFIG, in_loop, provider_and_reader, settle
from tests.tracing import Spans, attributes_of, events_of, id_of, parent_of, status_of, text_of, trace_of

MESSAGE = "messaging.message.id"


class Chain(CoreAgent):
    """Passes each message on to the next of the chain."""

    def __init__(self, agent_id: str, then: str | None, spans: Spans) -> None:
        super().__init__(agent_id, "chain")
        self.then = then
        self.spans = spans

    async def _process_message(self, message: CoreMessage) -> None:
        if message.payload.get("fails") == self.agent_id:
            raise ValueError(message.payload["text"])
        with self.spans.inside(f"work of {self.agent_id}"):
            await asyncio.sleep(0)
        if self.then is not None:
            await self.send_message(self.then, "note", message.payload)


def options(spans: Spans) -> Any:
    return {"config": CONFIG, "meter_provider": provider_and_reader()[0], "tracer_provider": spans.provider}


async def run_chain(spans: Spans, payload: dict[str, Any], conversations: int = 1) -> None:
    """Let conversations go through a chain of three."""
    orchestrator = CoreOrchestrator()
    for agent_id, then in (("a", "b"), ("b", "c"), ("c", None)):
        await orchestrator.register_agent(Chain(agent_id, then, spans))
    with instrument_orchestrator(orchestrator, **options(spans)):
        await orchestrator.start()
        for number in range(conversations):
            with spans.root(f"request {number}"):
                message = CoreMessage("outside", "a", "note", {"number": number, **payload})
                await orchestrator.agents["a"].inbox.put(message)
        done = asyncio.get_running_loop().time() + 20
        while len(spans.named("process c")) < conversations and "fails" not in payload:
            assert asyncio.get_running_loop().time() < done
            await asyncio.sleep(0.001)
        await settle()
        await orchestrator.stop()


@in_loop
async def test_one_trace_goes_through_the_whole_chain() -> None:
    spans = Spans()
    await run_chain(spans, {})
    assert spans.family() == [
        ("request 0", None),
        ("process a", "request 0"), ("work of a", "process a"), ("send b", "process a"),
        ("process b", "send b"), ("work of b", "process b"), ("send c", "process b"),
        ("process c", "send c"), ("work of c", "process c"),
    ]  # fmt: skip
    assert len({trace_of(span) for span in spans.all()}) == 1


@in_loop
async def test_conversations_through_the_same_router_stay_apart() -> None:
    spans = Spans()
    await run_chain(spans, {}, conversations=50)
    traces = Counter(trace_of(span) for span in spans.all())
    assert set(traces.values()) == {9}
    assert len(traces) == 50
    for span in spans.named("process c"):
        (root,) = [other for other in spans.all() if other.parent is None and trace_of(other) == trace_of(span)]
        assert root.name.startswith("request ")


@in_loop
async def test_messages_carry_nothing_as_there_is_no_place_for_it_and_are_what_they_were() -> None:
    spans, agent = Spans(), Chain("a", "b", Spans())
    with instrument_agent(agent, **options(spans)):
        await agent.send_message("b", "note", {"text": "hello"}, priority=2)
        message = agent.outbox.get_nowait()
    expected = CoreMessage("a", "b", "note", {"text": "hello"}, 2, message.message_id)
    assert vars(message) == vars(expected)
    assert attributes_of(spans.one("send b")) == {
        "messaging.system": "amptalk",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "b",
        "messaging.message.id": message.message_id,
        "message.type": "note",
        "gen_ai.agent.id": "a",
        "gen_ai.agent.name": "a",
        "amptalk.message.priority": "2",
    }


class Noting(asyncio.Queue[CoreMessage]):
    """Remembers what was put, without holding it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[CoreMessage]] = []

    def _put(self, item: CoreMessage) -> None:
        self.seen.append(weakref.ref(item))
        super()._put(item)


@in_loop
async def test_a_message_to_nobody_is_not_held_for_ever() -> None:
    spans, orchestrator, outbox = Spans(), CoreOrchestrator(), Noting()
    agent = Chain("a", None, spans)
    agent.outbox = outbox
    await orchestrator.register_agent(agent)
    with instrument_orchestrator(orchestrator, **options(spans)):
        await agent.send_message("nobody", "note", {})
        outbox.get_nowait()
        gc.collect()
        assert [message() for message in outbox.seen] == [None]


@in_loop
async def test_a_message_that_the_program_takes_itself_is_not_held() -> None:
    """From the outbox of an agent that is watched alone, or to an agent that is not watched."""
    spans, orchestrator, outbox = Spans(), CoreOrchestrator(), Noting()
    alone, agent, receiver = Chain("a", None, spans), Chain("b", None, spans), Chain("c", None, spans)
    alone.outbox, agent.outbox = outbox, Noting()
    for one in (agent, receiver):
        await orchestrator.register_agent(one)
    unwatched = {**options(spans), "config": CONFIG.with_changes(agents_exclude=("c",))}
    with instrument_agent(alone, **options(spans)), instrument_orchestrator(orchestrator, **unwatched):
        await alone.send_message("b", "note", {})
        await agent.send_message("c", "note", {})
        outbox.get_nowait()
        receiver.inbox.put_nowait(agent.outbox.get_nowait())
        receiver.inbox.get_nowait()
        gc.collect()
        assert [message() for message in (*outbox.seen, *agent.outbox.seen)] == [None, None]


class Slim:
    """A message that can't be referred to weakly."""

    __slots__ = ("bearer",)


class Bearer:
    """Tells whether a message is there."""


def test_messages_on_their_way_do_not_push_each_other_out_but_for_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tracer, "_MOST_ON_THE_WAY", 3)
    tracer, messages = Spans().tracer, [CoreMessage("a", "b", "note", {}) for _ in range(5)]
    contexts = [Context({"number": number}) for number in range(5)]
    for message, context in zip(messages, contexts, strict=True):
        tracer.hand_over(message, context)
    assert [tracer.handed_over(message) for message in messages] == [None, None, *contexts[2:]]
    bearers = []
    for _ in range(5):
        slim = Slim()
        slim.bearer = Bearer()  # type: ignore[attr-defined]
        bearers.append(weakref.ref(slim.bearer))  # type: ignore[attr-defined]
        tracer.hand_over(slim, contexts[0])
    assert [bearer() is None for bearer in bearers] == [True, True, False, False, False]
    assert tracer.handed_over(slim) is contexts[0]


@in_loop
async def test_a_failure_is_told_though_the_agent_swallows_it() -> None:
    spans = Spans()
    await run_chain(spans, {"fails": "a", "text": "s3cret"})
    span = spans.one("process a")
    assert status_of(span) == (StatusCode.ERROR, "ValueError")
    assert [name for name, _attributes in events_of(span)] == ["exception"]
    assert "s3cret" not in text_of(span)


@in_loop
async def test_every_send_and_every_message_has_its_span_and_they_belong_together() -> None:
    """Some hundred messages, some straight into inboxes, some to nobody: what the program's own log says."""
    spans, program = Spans(), Program()
    with instrument_orchestrator(program.orchestrator, **options(spans)):
        await program.start()
        await program.run(600)
        await program.orchestrator.stop()
    log = program.log
    sends = {attributes_of(span)[MESSAGE]: span for span in spans.all() if span.name.startswith("send")}
    processes = {attributes_of(span)[MESSAGE]: span for span in spans.all() if span.name.startswith("process")}
    assert len(sends) == sum(log.sent.values()) + sum(log.undeliverable.values())
    assert len(processes) == sum(log.received.values())
    assert len(sends) + len(processes) == len(spans.all())
    unsent = [span for message, span in processes.items() if message not in sends]
    assert [span.parent for span in unsent] == [None] * (600 // 13 + 1)
    for message, span in processes.items():
        if message in sends:
            assert (parent_of(span), trace_of(span)) == (id_of(sends[message]), trace_of(sends[message]))
    handled = {id_of(span) for span in processes.values()}
    forwarded = [span for span in sends.values() if attributes_of(span)["gen_ai.agent.id"] != "gateway"]
    assert len(forwarded) > 50
    assert {parent_of(span) for span in forwarded} <= handled
    destinations = {attributes_of(span).get("messaging.destination.name") for span in sends.values()}
    assert SINK in destinations
    assert len([message for message in sends if message not in processes]) == sum(log.undeliverable.values())
