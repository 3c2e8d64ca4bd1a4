"""Whatever fails in a tracer, a sampler or a propagator: the program goes on, and what is counted stays right."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import NoOpTracer

from amptalk_otel import instrument_agent, instrument_orchestrator
from amptalk_otel._tracing import _agent, _carrier, _ending, _tracer
from amptalk_otel._tracing._carrier import Carrier
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel.demo.runtime import Message, MessageType, Orchestrator, StateManager
from tests.support import CONFIG, Scripted, counts, in_loop, note, provider_and_reader, settle
from tests.tracing import Spans, attributes_of, connect, traced


class Broken(Exception):
    """Nobody may see it."""


def fail(*_arguments: Any, **_more: Any) -> Any:
    raise Broken


class BrokenSampler(Sampler):
    should_sample = fail

    def get_description(self) -> str:
        return "Broken"


class BrokenPropagator(TextMapPropagator):
    fields: Any = frozenset()
    inject = fail
    extract = fail


class BrokenProvider(trace.TracerProvider):
    """Its tracers raise."""

    def get_tracer(self, *_arguments: Any, **_more: Any) -> trace.Tracer:
        class BrokenTracer(NoOpTracer):
            start_span = fail

        return BrokenTracer()


class BrokenProcessor(SpanProcessor):
    on_end = fail


async def converse(spans: Spans) -> list[Any]:
    """Alice asks three times; Bob answers, fails and retries. What both counted, and what Alice got."""
    got: list[Any] = []

    async def answer(message: Message) -> list[Message]:
        return [message.create_reply(MessageType.TRANSCRIPTION_RESULT, {"to": message.message_id})]

    async def listen(message: Message) -> None:
        got.append(message.payload["to"])

    alice = Scripted(*[listen] * 3, agent_id="a", name="Alice")
    bob = Scripted(answer, ValueError(), ConnectionError(), answer, agent_id="b", name="Bob")
    bob.state_manager = StateManager()
    connect(alice, bob)
    with traced(spans, alice, bob) as hooks:
        for agent in (alice, bob):
            await agent.start()
        for number in range(3):
            message = note(message_id=str(number), source_agent_id="a", target_agent_id="b")
            assert await alice.send_message(message) is True
        assert await alice.send_message(note(target_agent_id="nobody")) is False
        assert await bob.state_manager.save_state("b", {"x": 1}) is True
        assert await bob.state_manager.load_state("b") == {"x": 1}
        await settle(60)
        for agent in (alice, bob):
            await agent.stop()
        return [*(counts(hook.read()) for hook in hooks), got]


EXPECTED: list[Any] = [
    {"received": 2, "processed": 2, "sent": 3, "waits": 2, "works": 2, "undeliverable": {"unknown_target": 1}},
    {
        "received": 3, "processed": 2, "sent": 2, "waits": 3, "works": 3,
        "failed": {"ValueError": 1}, "retries": {"ConnectionError": 1},
    },
    ["0", "2"],
]  # fmt: skip


def broken_by(owner: Any, attribute: str) -> Callable[[pytest.MonkeyPatch], Spans]:
    def break_it(monkeypatch: pytest.MonkeyPatch) -> Spans:
        spans = Spans()
        monkeypatch.setattr(owner, attribute, fail)
        return spans

    break_it.__name__ = attribute
    return break_it


def with_sampler(_monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(BrokenSampler())


def with_propagator(_monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    spans.tracer.carrier = Carrier(BrokenPropagator())
    return spans


def with_provider(_monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    spans.tracer = MessageTracer(BrokenProvider(), spans.tracer.carrier)
    return spans


def with_processor(_monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    spans.provider.add_span_processor(BrokenProcessor())
    return spans


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize(
    "break_it",
    [
        with_sampler,
        with_propagator,
        with_provider,
        with_processor,
        broken_by(_tracer, "of_message"),
        broken_by(_tracer.MessageTracer, "start_process"),
        broken_by(_tracer.MessageTracer, "start_inside"),
        broken_by(_tracer.MessageTracer, "description_of_send"),
        broken_by(_ending, "_fail"),
        broken_by(_carrier.Carrier, "inject"),
        broken_by(_carrier.Carrier, "extract"),
        broken_by(_agent, "of_process"),
        broken_by(_agent.Attempts, "failed"),
        broken_by(_agent.Attempts, "retried"),
        broken_by(_tracer.MessageTracer, "context_of"),
        broken_by(_tracer.MessageTracer, "exemplary"),
        broken_by(_agent.AgentTracing, "attempts_at"),
        broken_by(_agent.AgentTracing, "end"),
    ],
    ids=lambda break_it: getattr(break_it, "__name__", ""),
)
def test_every_message_is_handled_and_counted(
    break_it: Callable[[pytest.MonkeyPatch], Spans], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Any] = []

    @in_loop
    async def run() -> None:
        results.extend(await converse(break_it(monkeypatch)))

    run()
    assert results == EXPECTED
    assert all("Broken at" in message for message in caplog.messages if "skipped" in message)


def test_with_nothing_broken_the_numbers_are_the_same() -> None:
    spans = Spans()

    @in_loop
    async def run() -> None:
        assert await converse(spans) == EXPECTED

    run()
    assert len(spans.named("process Bob")) == 3
    assert len(spans.named("process Alice")) == 2


class Unspeakable:
    """A priority that nobody can write down."""

    def __str__(self) -> str:
        raise Broken


class Raising(Scripted):
    """Can't send."""

    async def send_message(self, message: Message) -> bool:
        raise ConnectionError(message.message_id)


class Counting(SpanProcessor):
    """The names of spans that have begun and not ended."""

    def __init__(self) -> None:
        self.open: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.open.remove(span.name)


@pytest.mark.usefixtures("lenient_guard")
def test_spans_end_though_what_they_are_to_tell_can_not_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, counting = Spans(), Counting()
    spans.provider.add_span_processor(counting)
    monkeypatch.setattr(_ending, "_fail", fail)

    @in_loop
    async def run() -> None:
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(ValueError(), agent_id="b", name="Bob")
        alice.state_manager = StateManager()
        connect(alice, bob)
        message = note(message_id="1", target_agent_id="b", payload={})
        message.priority = Unspeakable()  # type: ignore[assignment]
        with traced(spans, alice, bob):
            await bob.start()
            assert await alice.send_message(message) is True
            await settle()
            with pytest.raises(TypeError):
                await alice.state_manager.save_state("a", {"x": object()})
            await bob.stop()
        carol = Raising(agent_id="c", name="Carol")
        with traced(spans, carol), pytest.raises(ConnectionError):
            await carol.send_message(note(target_agent_id="b"))

    run()
    assert counting.open == []
    assert spans.names() == ["send Bob", "process Bob", "save_state", "send b"]
    told = attributes_of(spans.one("process Bob"))
    assert (told["messaging.system"], told["messaging.message.body.size"]) == ("amptalk", 2)
    assert "amptalk.message.wait.duration" in told


@in_loop
@pytest.mark.usefixtures("lenient_guard")
async def _an_orchestrator_with_a_broken_provider() -> None:
    orchestrator, agent = Orchestrator(name="town"), Scripted(agent_id="b", name="Bob")
    orchestrator.register_agent(agent, ["all"])
    provider, _reader = provider_and_reader()
    options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": BrokenProvider()}
    with instrument_orchestrator(orchestrator, **options) as handle:
        await orchestrator.start()
        assert await orchestrator.send_message_to_agent(note(target_agent_id="b")) is True
        assert await orchestrator.send_message_to_agent(note(target_agent_id="z")) is False
        assert await orchestrator.send_message_to_group(note(), "all") is True
        assert await orchestrator.broadcast_message(note()) is True
        await settle()
        await orchestrator.stop()
        (reading,) = handle.read()
        assert counts(reading) == {"received": 3, "processed": 3, "waits": 3, "works": 3}
    assert len(agent.seen) == 3
    provider.shutdown()


@pytest.mark.usefixtures("lenient_guard")
def test_an_orchestrator_goes_on_with_a_provider_whose_tracers_raise() -> None:
    _an_orchestrator_with_a_broken_provider()


@pytest.mark.usefixtures("lenient_guard")
def test_a_provider_that_gives_no_tracer_costs_the_spans_and_not_the_metrics(caplog: pytest.LogCaptureFixture) -> None:
    class Nothing(trace.TracerProvider):
        get_tracer = fail

    @in_loop
    async def run() -> None:
        agent, (provider, _reader) = Scripted(name="Bob"), provider_and_reader()
        options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": Nothing()}
        with instrument_agent(agent, **options) as handle:
            await agent.start()
            await agent.enqueue_message(note())
            await settle()
            await agent.stop()
            assert [counts(reading) for reading in handle.read()] == [
                {"received": 1, "processed": 1, "waits": 1, "works": 1}
            ]
        provider.shutdown()

    run()
    assert len([message for message in caplog.messages if "Broken at" in message]) == 1


@in_loop
async def _close_a_coroutine() -> None:
    spans, agent = Spans(), Scripted(name="Bob")

    class Waiting:
        def __await__(self) -> Any:
            yield

    async def wait(_message: Message) -> None:
        await Waiting()

    agent.script = [wait]
    with traced(spans, agent) as (hook,):
        await agent.enqueue_message(note())
        agent.is_running = True
        loop: Any = agent._message_loop()
        agent.tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        contextvars.copy_context().run(loop.send, None)  # as in a task of its own
        with spans.root("somebody else's") as other:
            loop.close()
            assert trace.get_current_span() is other
        agent.is_running = False
        agent.tasks.clear()
        assert counts(hook.read()).get("dropped") == {"cancelled": 1}
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert attributes_of(spans.one("process Bob"))["amptalk.message.state"] == "cancelled"


def test_a_coroutine_that_is_closed_leaves_other_contexts_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Garbage collection ends what nobody awaits any more, in whatever task it comes to."""
    _close_a_coroutine()
    assert caplog.messages == []  # OpenTelemetry complains of a context that is taken off where it was not put on
