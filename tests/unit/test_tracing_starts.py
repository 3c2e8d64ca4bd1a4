"""An agent's tasks keep what it was started in, and do not belong to it once that is over."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context, get_current
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from amptalk_otel import instrument_orchestrator
from amptalk_otel._tracing import _current
from amptalk_otel.demo.runtime import Message, Orchestrator, StateManager
from tests.core_runtime import CoreAgent, CoreMessage, CoreOrchestrator
from tests.support import CONFIG, Scripted, in_loop, note, provider_and_reader, settle
from tests.tracing import Spans, connect, parent_of, trace_of, traced, use

EVERYTHING = ["process Alice", "save_state", "send Bob", "send Bob"]


class Ticking(Scripted):
    """When it is told to, does all that an agent can do, in a task that its start begins."""

    def __init__(self, town: Orchestrator) -> None:
        super().__init__(agent_id="a", name="Alice")
        self.town = town
        self.tick = asyncio.Event()
        self.state_manager = StateManager()

    async def start(self) -> None:
        await super().start()
        self.tasks.append(asyncio.create_task(self.go_on()))

    async def go_on(self) -> None:
        await self.tick.wait()
        await self.town.send_message_to_agent(note(target_agent_id="b"))
        await self.send_message(note(target_agent_id="b"))
        assert self.state_manager is not None
        await self.state_manager.save_state("a", {})
        await self.enqueue_message(note())


@contextmanager
def instrumented(orchestrator: Any, spans: Spans) -> Iterator[None]:
    provider, _reader = provider_and_reader()
    options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
    with instrument_orchestrator(orchestrator, **options):
        yield
    provider.shutdown()


def town() -> tuple[Orchestrator, Ticking]:
    orchestrator = Orchestrator(name="town")
    alice, bob = Ticking(orchestrator), Scripted(agent_id="b", name="Bob")
    connect(alice, bob)
    for agent in (alice, bob):
        orchestrator.register_agent(agent)
    return orchestrator, alice


def parents(spans: Spans) -> list[tuple[str, str | None]]:
    """What Alice did after the start, and in what."""
    return sorted((name, parent) for name, parent in spans.family() if name in EVERYTHING)


@pytest.mark.parametrize("startup_is_over", [True, False])
def test_what_an_agent_does_belongs_to_the_span_that_it_was_started_in_until_that_is_over(
    startup_is_over: bool,
) -> None:
    @in_loop
    async def run() -> None:
        spans, (orchestrator, alice) = Spans(), town()
        with instrumented(orchestrator, spans), ExitStack() as startup:
            startup.enter_context(spans.root("startup"))
            await orchestrator.start()
            if startup_is_over:
                startup.close()
            alice.tick.set()
            await settle(30)
            await orchestrator.stop()
        parent = None if startup_is_over else "startup"
        assert parents(spans) == [(name, parent) for name in EVERYTHING]

    run()


@pytest.mark.parametrize("change", ["it is registered again", "another tracer takes over"])
def test_it_is_known_whatever_happens_to_those_who_watch(change: str) -> None:
    @in_loop
    async def run() -> None:
        spans, first, (orchestrator, alice) = Spans(), Spans(), town()
        with instrumented(orchestrator, spans if change == "it is registered again" else first):
            with spans.root("startup"):
                await orchestrator.start()
            if change == "it is registered again":
                bob = orchestrator.agents["b"]
                orchestrator.unregister_agent("a")
                orchestrator.register_agent(alice)
                connect(alice, bob)
                alice.tick.set()
                await settle(30)
        with instrumented(orchestrator, spans):
            alice.tick.set()
            await settle(30)
            await orchestrator.stop()
        assert parents(spans) == [(name, None) for name in EVERYTHING]

    run()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before Python 3.12 nobody can look at a task's context")
@in_loop
async def test_an_agent_that_runs_already_is_asked_what_it_was_started_in() -> None:
    spans, (orchestrator, alice) = Spans(), town()
    with spans.root("startup"):
        await orchestrator.start()
    with instrumented(orchestrator, spans):
        alice.tick.set()
        await settle(30)
        await orchestrator.stop()
    assert parents(spans) == [(name, None) for name in EVERYTHING]


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("tasks", [["none", None], None, 5], ids=str)
def test_an_agent_whose_tasks_are_no_tasks_is_traced_all_the_same(tasks: Any) -> None:
    @in_loop
    async def run() -> None:
        spans, agent = Spans(), Scripted(name="Bob")
        agent.tasks = tasks
        with traced(spans, agent):
            agent.tasks = []
            await agent.start()
            await agent.enqueue_message(note())
            await settle()
            await agent.stop()
        assert spans.names() == ["process Bob"]

    run()


REMOTE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


@in_loop
async def test_a_span_of_another_process_is_never_over() -> None:
    """Such as that of the job which runs the program: nobody here sees its end."""
    spans, (orchestrator, alice) = Spans(), town()
    with instrumented(orchestrator, spans), use(set_span_in_context(NonRecordingSpan(REMOTE), Context())):
        await orchestrator.start()
        alice.tick.set()
        await settle(30)
        await orchestrator.stop()
    found = [span for span in spans.all() if span.name in EVERYTHING]
    assert sorted(span.name for span in found) == EVERYTHING
    assert {(trace_of(span), parent_of(span)) for span in found} == {(REMOTE.trace_id, REMOTE.span_id)}


@in_loop
async def test_nor_is_one_that_is_not_recorded() -> None:
    spans, (orchestrator, alice) = Spans(), town()
    unsampled = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(0))
    with instrumented(orchestrator, spans), use(set_span_in_context(NonRecordingSpan(unsampled), Context())):
        await orchestrator.start()
        alice.tick.set()
        await settle(30)
        await orchestrator.stop()
    assert spans.names() == []


@pytest.mark.parametrize("startup_is_over", [True, False])
def test_baggage_of_the_start_goes_with_its_span(startup_is_over: bool) -> None:
    got: list[object] = []

    async def look(_message: Message) -> None:
        got.append(baggage.get_baggage("tenant"))

    @in_loop
    async def run() -> None:
        spans, (orchestrator, alice) = Spans(), town()
        bob = orchestrator.agents["b"]
        assert isinstance(bob, Scripted)
        bob.script = [look]
        with traced(spans, alice, bob), ExitStack() as request:
            await bob.start()
            request.enter_context(spans.root("request"))
            with use(baggage.set_baggage("tenant", "acme", get_current())):
                await alice.start()
            if startup_is_over:
                request.close()
            alice.tick.set()
            await settle(30)
            for agent in (alice, bob):
                await agent.stop()

    run()
    assert got == [None if startup_is_over else "acme"]


@in_loop
async def test_a_span_is_forgotten_with_the_tasks_that_keep_it() -> None:
    spans, (orchestrator, _alice) = Spans(), town()
    gc.collect()  # what earlier tests left in cycles goes before we count
    before = len(_current._starts)
    with instrumented(orchestrator, spans):
        with spans.root("startup"):
            await orchestrator.start()
        assert len(_current._starts) == before + 1
        await orchestrator.stop()
        await settle()
    spans.clear()
    del orchestrator, _alice
    assert len(_current._starts) == before


class CoreTicking(CoreAgent):
    """Of the older generation: its loop begins a task that sends when it is told to."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id, "ticking")
        self.tick = asyncio.Event()
        self.ticking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        self.ticking = asyncio.create_task(self.go_on())
        await super().run()

    async def go_on(self) -> None:
        await self.tick.wait()
        await self.send_message("b", "note", {})

    async def _process_message(self, message: CoreMessage) -> None:
        pass


@in_loop
async def test_a_core_agent_is_known_by_its_first_message() -> None:
    spans, orchestrator = Spans(), CoreOrchestrator()
    alice, bob = CoreTicking("a"), CoreTicking("b")
    for agent in (alice, bob):
        await orchestrator.register_agent(agent)
    with instrumented(orchestrator, spans):
        with spans.root("startup"):
            await orchestrator.start()
            await settle()
        await alice.inbox.put(CoreMessage("outside", "a", "note", {}))
        await settle()
        alice.tick.set()
        await asyncio.sleep(0.02)
        await orchestrator.stop()
    for agent in (alice, bob):
        assert agent.ticking is not None
        agent.ticking.cancel()
    assert spans.family() == [("startup", None), ("process a", None), ("send b", None), ("process b", "send b")]
