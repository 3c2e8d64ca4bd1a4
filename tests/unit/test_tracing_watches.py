"""Several watch the same agent, and some of them bring a tracer: who comes and goes, what stays true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.context import Context, get_current

from amptalk_otel import Instrumentation, instrument_agent, instrument_orchestrator
from amptalk_otel.demo.runtime import Message, MessageMetadata, Orchestrator
from tests.support import (
    CONFIG,
    Scripted,
    counts,
    handle,
    identity,
    in_loop,
    note,
    provider_and_reader,
    series,
    settle,
)
from tests.tracing import Spans

WAIT, WORK = "amptalk.agent.message.wait.duration", "amptalk.agent.message.process.duration"


class Watching:
    """One watch with a provider of its own for metrics, and one for spans if it is to have that."""

    def __init__(self, watch: Any, target: Any, spans: Spans | None = None) -> None:
        self.provider, self.reader = provider_and_reader()
        tracer_provider = spans.provider if spans is not None else None
        self.handle: Instrumentation = watch(
            target, config=CONFIG, meter_provider=self.provider, tracer_provider=tracer_provider
        )

    def counts(self) -> dict[str, Any]:
        (reading,) = self.handle.read()
        return counts(reading)

    def observed(self) -> list[int]:
        """How many observations there are of waiting and of processing, as the SDK has them."""
        found = series(self.reader)
        return [
            sum(value[0] for (metric, _of), value in found.items() if metric == histogram) for histogram in (WAIT, WORK)
        ]

    def end(self) -> None:
        self.handle.uninstrument()
        self.provider.shutdown()


async def one_more(agent: Scripted) -> None:
    await agent.enqueue_message(note())
    await settle()


def lasting(owner: object) -> dict[str, int]:
    """What `owner` holds, by identity, but for what the program changes while it works."""
    changing = ("_unfinished_tasks", "script")
    return {name: value for name, value in identity(owner).items() if name not in changing}


def whole(number: int) -> dict[str, int]:
    return {"received": number, "processed": number, "waits": number, "works": number}


@pytest.mark.parametrize("first_to_leave", ["with tracer", "without"])
def test_spans_come_with_the_tracer_and_go_with_it_and_counts_stay_true(first_to_leave: str) -> None:
    @in_loop
    async def run() -> None:
        spans, agent = Spans(), Scripted(name="Bob")
        await agent.start()
        await one_more(agent)
        agent.seen.clear()
        before = lasting(agent), lasting(agent.input_queue)
        plain = Watching(instrument_agent, agent)
        await one_more(agent)
        assert spans.names() == []
        tracing = Watching(instrument_agent, agent, spans)
        await one_more(agent)
        assert spans.names() == ["process Bob"]
        assert plain.counts() == tracing.counts() == whole(2)
        assert plain.observed() == [2, 2]
        assert tracing.observed() == [1, 1]
        leaves, stays = (tracing, plain) if first_to_leave == "with tracer" else (plain, tracing)
        leaves.end()
        await one_more(agent)
        assert len(spans.names()) == (1 if leaves is tracing else 2)
        assert stays.counts() == whole(3)
        assert stays.observed() == ([3, 3] if stays is plain else [2, 2])
        stays.end()
        await one_more(agent)
        assert len(spans.names()) == (1 if leaves is tracing else 2)
        assert len(agent.seen) == 4
        assert (lasting(agent), lasting(agent.input_queue)) == before
        await agent.stop()

    run()


@in_loop
async def test_of_two_tracers_the_first_makes_the_spans_until_it_leaves() -> None:
    one, other, agent = Spans(), Spans(), Scripted(name="Bob")
    first, second = Watching(instrument_agent, agent, one), Watching(instrument_agent, agent, other)
    await agent.start()
    await one_more(agent)
    assert (one.names(), other.names()) == (["process Bob"], [])
    first.end()
    await one_more(agent)
    assert (one.names(), other.names()) == (["process Bob"], ["process Bob"])
    assert second.counts() == whole(2)
    assert second.observed() == [2, 2]
    second.end()
    await agent.stop()


@pytest.mark.parametrize("leaves_or_comes", ["leaves", "comes"])
def test_a_message_that_is_under_way_when_the_tracer_changes_is_counted_once(leaves_or_comes: str) -> None:
    """One in work and one waiting: each is observed once, whoever is told when."""

    @in_loop
    async def run() -> None:
        spans, go_on = Spans(), asyncio.Event()

        async def wait(_message: Message) -> None:
            await go_on.wait()

        agent = Scripted(wait, name="Bob")
        plain = Watching(instrument_agent, agent)
        tracing = Watching(instrument_agent, agent, spans) if leaves_or_comes == "leaves" else None
        await agent.start()
        await agent.enqueue_message(note())
        await agent.enqueue_message(note())
        await settle()
        if tracing is not None:
            tracing.end()
        else:
            tracing = Watching(instrument_agent, agent, spans)
        go_on.set()
        await settle()
        assert plain.counts() == whole(2)
        assert plain.observed() == [2, 2]
        assert spans.names() == ["process Bob"]  # that of the first, or of the second
        assert get_current() == Context()
        tracing.end()
        plain.end()
        await agent.stop()

    run()


class Between(MessageMetadata):
    """Something happens after a message was taken and before it is begun."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act = act

    def mark_processing_start(self) -> None:
        super().mark_processing_start()
        self.act()


@pytest.mark.parametrize("change", ["leaves", "comes", "is replaced"])
def test_a_message_that_is_taken_and_not_begun_when_the_tracer_changes_is_observed_once(change: str) -> None:
    @in_loop
    async def run() -> None:
        one, other, agent = Spans(), Spans(), Scripted(name="Bob")
        plain = Watching(instrument_agent, agent)
        watches = [Watching(instrument_agent, agent, one)] if change != "comes" else []

        def act() -> None:
            if change == "is replaced":
                watches.append(Watching(instrument_agent, agent, other))
            if change == "comes":
                watches.append(Watching(instrument_agent, agent, one))
            else:
                watches.pop(0).end()

        await agent.start()
        await one_more(agent)
        await agent.enqueue_message(note(metadata=Between(act)))
        await settle()
        await one_more(agent)
        assert plain.counts() == whole(3)
        assert plain.observed() == [3, 3]
        made = {"leaves": (1, 0), "comes": (2, 0), "is replaced": (1, 2)}
        assert (len(one.names()), len(other.names())) == made[change]
        for watching in (*watches, plain):
            watching.end()
        await agent.stop()

    run()


@in_loop
async def test_an_agent_that_leaves_and_comes_back_is_traced_again() -> None:
    spans, orchestrator, agent = Spans(), Orchestrator(name="town"), Scripted(agent_id="b", name="Bob")
    watching = Watching(instrument_orchestrator, orchestrator, spans)
    orchestrator.register_agent(agent)
    await handle(agent, note())
    orchestrator.unregister_agent("b")
    await handle(agent, note())
    assert spans.names() == ["process Bob"]
    orchestrator.register_agent(agent)
    await handle(agent, note())
    assert spans.names() == ["process Bob", "process Bob"]
    watching.end()


@pytest.mark.parametrize("first_to_leave", ["with tracer", "without"])
def test_an_orchestrators_sends_are_traced_while_somebody_brings_a_tracer(first_to_leave: str) -> None:
    @in_loop
    async def run() -> None:
        spans, orchestrator = Spans(), Orchestrator(name="town")
        orchestrator.register_agent(Scripted(agent_id="b", name="Bob"))
        await settle()
        before = identity(orchestrator)
        plain = Watching(instrument_orchestrator, orchestrator)
        await orchestrator.send_message_to_agent(note(target_agent_id="b"))
        tracing = Watching(instrument_orchestrator, orchestrator, spans)
        await orchestrator.send_message_to_agent(note(target_agent_id="b"))
        assert spans.names() == ["send Bob"]
        leaves, stays = (tracing, plain) if first_to_leave == "with tracer" else (plain, tracing)
        leaves.end()
        await orchestrator.send_message_to_agent(note(target_agent_id="b"))
        assert len(spans.names()) == (1 if leaves is tracing else 2)
        routed = {value for (name, _of), value in series(stays.reader).items() if name.endswith("messages.routed")}
        assert routed == {3}
        stays.end()
        await orchestrator.send_message_to_agent(note(target_agent_id="b"))
        assert len(spans.names()) == (1 if leaves is tracing else 2)
        assert identity(orchestrator) == before

    run()
