"""Spans of what agents do besides messages: states that are saved and loaded, and operations that they measure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry.baggage import set_baggage
from opentelemetry.context import Context, attach, get_current
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from amptalk_otel import PerformanceMonitor, _traces, instrument_orchestrator, instrument_state_manager
from amptalk_otel.demo.runtime import Message, Orchestrator, StateManager
from tests.page import no_global_monitor
from tests.support import CONFIG, Scripted, handle, in_loop, note, provider_and_reader
from tests.tracing import Spans, attributes_of, events_of, status_of, text_of, traced

SECRET = "s3cret"
OF_BOB = {"gen_ai.agent.id": "b", "gen_ai.agent.name": "Bob"}


def with_state(*script: Any) -> Scripted:
    agent = Scripted(*script, agent_id="b", name="Bob")
    agent.state_manager = StateManager()
    return agent


# -- states --------------------------------------------------------------------------------------------


@in_loop
async def test_what_a_handler_saves_and_loads_are_children_of_its_processing() -> None:
    spans = Spans()

    async def work(_message: Message) -> None:
        assert agent.state_manager is not None
        await agent.state_manager.save_state("b", {"text": SECRET})
        await agent.state_manager.load_state(agent_id="b")
        await agent.state_manager.delete_state("b")

    agent = with_state(work)
    with traced(spans, agent):
        await handle(agent, note())
    assert spans.family() == [
        ("load_state", None),  # by the agent itself, when it starts
        ("process Bob", None), ("save_state", "process Bob"), ("load_state", "process Bob"),
        ("delete_state", "process Bob"),
    ]  # fmt: skip
    for name, operation in (("save_state", "write"), ("load_state", "read"), ("delete_state", "delete")):
        span = spans.named(name)[-1]
        assert attributes_of(span) == {"state.storage": "memory", "state.operation": operation, **OF_BOB}
        assert (span.kind, status_of(span)) == (SpanKind.INTERNAL, (StatusCode.UNSET, None))
        assert SECRET not in text_of(span)


@in_loop
async def test_a_state_that_can_not_be_saved_is_told_without_what_it_is() -> None:
    spans, agent = Spans(), with_state()
    assert agent.state_manager is not None
    with traced(spans, agent), pytest.raises(TypeError):
        await agent.state_manager.save_state("b", {SECRET: object()})
    span = spans.one("save_state")
    assert status_of(span) == (StatusCode.ERROR, "TypeError")
    assert attributes_of(span)["error.type"] == "TypeError"
    ((name, event),) = events_of(span)
    assert (name, event["exception.type"]) == ("exception", "TypeError")
    assert SECRET not in text_of(span)


@in_loop
async def test_an_operation_that_is_cancelled_is_no_error() -> None:
    spans, agent = Spans(), with_state()

    class Slow(StateManager):
        async def load_state(self, agent_id: str) -> dict[str, Any] | None:
            await asyncio.Event().wait()
            return None

    agent.state_manager = manager = Slow()
    with traced(spans, agent):
        loading = asyncio.create_task(manager.load_state("b"))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
    span = spans.one("load_state")
    assert (status_of(span), events_of(span)) == ((StatusCode.UNSET, None), [])
    assert attributes_of(span) == {
        "state.storage": "memory",
        "state.operation": "read",
        "amptalk.operation.state": "cancelled",
        **OF_BOB,
    }


@in_loop
async def test_a_state_manager_of_nobody_is_traced_where_its_watch_brings_a_tracer() -> None:
    spans, manager, (provider, _reader) = Spans(), StateManager(), provider_and_reader()
    plain = instrument_state_manager(manager, config=CONFIG, meter_provider=provider)
    await manager.save_state("x", {})
    assert spans.names() == []
    other, _reader = provider_and_reader()
    tracing = instrument_state_manager(manager, config=CONFIG, meter_provider=other, tracer_provider=spans.provider)
    with spans.root("request"):
        await manager.save_state("x", {})
    assert spans.family() == [("request", None), ("save_state", "request")]
    assert attributes_of(spans.one("save_state")) == {"state.storage": "memory", "state.operation": "write"}
    tracing.uninstrument()
    await manager.save_state("x", {})
    plain.uninstrument()
    assert len(spans.named("save_state")) == 1
    assert not {"save_state", "load_state", "delete_state"} & set(vars(manager))
    for meter_provider in (provider, other):
        meter_provider.shutdown()


# -- operations ----------------------------------------------------------------------------------------


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What the monitor's own pipeline exports to."""
    exporter = InMemorySpanExporter()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setattr(_traces, "ConsoleSpanExporter", lambda: exporter)
    with no_global_monitor():
        yield exporter


@in_loop
async def measure(monitor: PerformanceMonitor, agent: Scripted, *messages: Message) -> None:
    monitor.add_agent(agent)
    await monitor.start_collecting()
    await handle(agent, *messages)
    await monitor.stop_collecting()


def test_an_operation_that_is_measured_is_a_span_inside_the_processing(exporter: InMemorySpanExporter) -> None:
    monitor = PerformanceMonitor(enable_prometheus=False)
    current: list[str] = []

    async def work(_message: Message) -> None:
        async with monitor.measure_execution_time("b", "transcribe"):
            with monitor.measure_execution_time("z", "nested"):
                current.append(getattr(get_current_span(), "name", ""))
        current.append(getattr(get_current_span(), "name", ""))

    measure(monitor, Scripted(work, agent_id="b", name="Bob"), note())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"process Bob", "transcribe", "nested"}
    for name, parent in (("transcribe", "process Bob"), ("nested", "transcribe")):
        of = spans[parent].get_span_context()
        assert of is not None
        found = spans[name].parent
        assert found is not None
        assert (found.trace_id, found.span_id) == (of.trace_id, of.span_id)
        assert spans[name].kind == SpanKind.INTERNAL
    assert attributes_of(spans["transcribe"]) == {"operation.name": "transcribe", **OF_BOB}
    assert attributes_of(spans["nested"])["gen_ai.agent.id"] == "z"
    assert current == ["nested", "process Bob"]


def test_an_operation_that_fails_is_told_without_its_message(exporter: InMemorySpanExporter) -> None:
    monitor = PerformanceMonitor(enable_prometheus=False)

    async def work(_message: Message) -> None:
        with pytest.raises(LookupError), monitor.measure_execution_time("b", "look up"):
            raise LookupError(SECRET)

    measure(monitor, Scripted(work, agent_id="b", name="Bob"), note())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert status_of(spans["look up"]) == (StatusCode.ERROR, "LookupError")
    assert attributes_of(spans["look up"])["error.type"] == "LookupError"
    assert status_of(spans["process Bob"]) == (StatusCode.UNSET, None)
    assert SECRET not in text_of(spans["look up"])


@pytest.mark.parametrize("is_added", [True, False])
def test_where_the_monitor_brings_no_tracer_the_one_that_traces_the_agent_is_used(is_added: bool) -> None:
    @in_loop
    async def run() -> None:
        spans, monitor, orchestrator = Spans(), PerformanceMonitor(enable_prometheus=False), Orchestrator(name="town")
        provider, _reader = provider_and_reader()

        async def work(_message: Message) -> None:
            for agent_id in ("b", "z"):
                with monitor.measure_execution_time(agent_id, f"transcribe at {agent_id}"):
                    pass

        agent = Scripted(work, agent_id="b", name="Bob")
        orchestrator.register_agent(agent)
        options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
        with instrument_orchestrator(orchestrator, **options):
            if is_added:
                monitor.add_agent(agent)
            await monitor.start_collecting()
            await handle(agent, note())
            await monitor.stop_collecting()
        with monitor.measure_execution_time("b", "not any more"):
            pass
        assert spans.family() == [("process Bob", None), ("transcribe at b", "process Bob")]
        assert attributes_of(spans.one("transcribe at b")) == {"operation.name": "transcribe at b", **OF_BOB}
        provider.shutdown()

    with pytest.MonkeyPatch.context() as patch, no_global_monitor():
        patch.setenv("OTEL_TRACES_EXPORTER", "none")
        run()


@pytest.mark.parametrize("order", ["123", "132", "213", "231", "312", "321"])
def test_after_operations_that_overlap_nothing_of_them_is_current(order: str) -> None:
    spans = Spans()
    with spans.root("task") as task:
        begun = {}
        for name in "123":
            begun[name] = spans.tracer.start_inside(name, {})
        for name in order:
            block = begun[name]
            assert block is not None
            block.end()
        assert get_current_span() is task
    assert spans.family() == [("task", None), ("1", "task"), ("2", "1"), ("3", "2")]
    assert get_current() == Context()


def test_what_a_program_leaves_attached_in_an_operation_is_taken_off_with_it() -> None:
    spans = Spans()
    block = spans.tracer.start_inside("operation", {})
    assert block is not None
    attach(set_baggage("tenant", "acme"))
    block.end()
    assert get_current() == Context()


def test_an_operation_that_the_garbage_collector_ends_leaves_the_context_of_others_alone() -> None:
    spans = Spans()

    def run() -> None:
        block = spans.tracer.start_inside("operation", {})
        assert block is not None
        current = get_current_span()

        def somebody_else() -> None:
            block.end(GeneratorExit())
            assert get_current_span() is current

        copy_context().run(somebody_else)

    copy_context().run(run)
    assert attributes_of(spans.one("operation")) == {"amptalk.operation.state": "cancelled"}


def test_before_and_after_collecting_nothing_is_traced(exporter: InMemorySpanExporter) -> None:
    monitor = PerformanceMonitor(enable_prometheus=False)
    with monitor.measure_execution_time("b", "before"):
        pass
    measure(monitor, Scripted(agent_id="b", name="Bob"))
    with monitor.measure_execution_time("b", "after"):
        pass
    assert exporter.get_finished_spans() == ()
