"""What is not recorded: costs next to nothing, and its decision goes on with the message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from amptalk_otel._tracing import _tracer
from amptalk_otel.demo.runtime import Message, MessageType
from tests.support import Scripted, counts, handle, in_loop, note, settle
from tests.tracing import KEY, Spans, attributes_of, connect, traced, use

UNSAMPLED = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(0))
REMOTE_UNSAMPLED = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(0))


class Custom(Sampler):
    """Decides by what it is told to, and remembers what it was asked. Keeps the attributes that it sees to itself."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[tuple[str, SpanKind | None]] = []
        self.seen: list[dict[str, Any]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Any] | None = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        self.asked.append((name, kind))
        self.seen.append(dict(attributes or {}))
        if attributes is not None:
            attributes["by the sampler"] = True  # it may, and nobody else is to see it
        return SamplingResult(self.decision)

    def get_description(self) -> str:
        return "Custom"


async def converse(spans: Spans, parent: SpanContext | None = None) -> tuple[list[Message], list[SpanContext]]:
    """Alice sends, Bob answers. What was sent, and the spans that were current in the two handlers."""
    current: list[SpanContext] = []
    sent = [note(source_agent_id="a", target_agent_id="b")]

    async def answer(message: Message) -> list[Message]:
        current.append(get_current_span().get_span_context())
        sent.append(message.create_reply(MessageType.TRANSCRIPTION_RESULT, {}))
        return [sent[-1]]

    async def listen(_message: Message) -> None:
        current.append(get_current_span().get_span_context())

    alice, bob = Scripted(listen, agent_id="a", name="Alice"), Scripted(answer, agent_id="b", name="Bob")
    connect(alice, bob)
    with traced(spans, alice, bob) as (hook_of_alice, hook_of_bob):
        for agent in (alice, bob):
            await agent.start()
        with use(set_span_in_context(NonRecordingSpan(parent), Context()) if parent is not None else Context()):
            assert await alice.send_message(sent[0])
        await settle(30)
        for agent in (alice, bob):
            await agent.stop()
        whole = {"received": 1, "processed": 1, "sent": 1, "waits": 1, "works": 1}
        assert [counts(hook.read()) for hook in (hook_of_alice, hook_of_bob)] == [whole, whole]
    return sent, current


def carried(message: Message) -> str:
    traceparent: str = message.metadata.checkpoint_data[KEY]["traceparent"]
    return traceparent


@pytest.fixture
def no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise AssertionError("attributes were made for a span that nobody sees")

    monkeypatch.setattr(_tracer, "of_message", fail)


@pytest.mark.parametrize("parent", [UNSAMPLED, REMOTE_UNSAMPLED], ids=["local", "remote"])
@pytest.mark.usefixtures("no_attributes")
def test_the_decision_of_an_unsampled_parent_is_carried_on_as_it_is(parent: SpanContext) -> None:
    spans = Spans(ParentBased(ALWAYS_ON))

    @in_loop
    async def run() -> None:
        sent, current = await converse(spans, parent)
        same = f"00-{parent.trace_id:032x}-{parent.span_id:016x}-00"
        assert [carried(message) for message in sent] == [same, same]
        assert [(of.trace_id, of.span_id) for of in current] == [(parent.trace_id, parent.span_id)] * 2

    run()
    assert spans.names() == []


@pytest.mark.parametrize(
    "sampler",
    [ParentBased(ALWAYS_OFF), ParentBasedTraceIdRatio(0.0), ALWAYS_OFF, TraceIdRatioBased(0.0)],
    ids=["parentbased_always_off", "parentbased_traceidratio", "always_off", "traceidratio"],
)
@pytest.mark.usefixtures("no_attributes")
def test_a_root_that_is_not_sampled_makes_one_decision_for_the_whole_trace(sampler: Sampler) -> None:
    spans = Spans(sampler)

    @in_loop
    async def run() -> None:
        sent, current = await converse(spans)
        first, second = (carried(message) for message in sent)
        assert first[:35] == second[:35]
        assert [int(traceparent[-2:], 16) & TraceFlags.SAMPLED for traceparent in (first, second)] == [0, 0]
        assert {f"{of.trace_id:032x}" for of in current} == {first[3:35]}
        assert [of.trace_flags.sampled for of in current] == [False, False]

    run()
    assert spans.names() == []


def test_with_a_ratio_of_one_everything_is_recorded() -> None:
    spans = Spans(TraceIdRatioBased(1.0))

    @in_loop
    async def run() -> None:
        sent, _current = await converse(spans)
        assert all(int(carried(message)[-2:], 16) & TraceFlags.SAMPLED for message in sent)

    run()
    assert spans.names() == ["send Bob", "process Bob", "send Alice", "process Alice"]


@pytest.mark.parametrize(
    ("sampler", "recorded"),
    [
        (ALWAYS_ON, True),
        (ParentBased(ALWAYS_OFF, local_parent_not_sampled=ALWAYS_ON), True),
        (ParentBased(ALWAYS_OFF, remote_parent_not_sampled=ALWAYS_ON), False),
        (Custom(Decision.RECORD_AND_SAMPLE), True),
    ],
    ids=["always_on", "parentbased-local-on", "parentbased-remote-on", "custom"],
)
def test_a_sampler_that_looks_at_more_than_the_parent_is_asked(sampler: Sampler, recorded: bool) -> None:
    spans = Spans(sampler)

    @in_loop
    async def run() -> None:
        await converse(spans, UNSAMPLED)

    run()
    assert spans.names() == (["send Bob", "process Bob", "send Alice", "process Alice"] if recorded else [])
    if isinstance(sampler, Custom):
        assert sampler.asked == [
            ("send Bob", SpanKind.PRODUCER), ("process Bob", SpanKind.CONSUMER),
            ("send Alice", SpanKind.PRODUCER), ("process Alice", SpanKind.CONSUMER),
        ]  # fmt: skip


class ForDebugging(ParentBased):
    """Records what has a mark in its baggage, whatever its parent."""

    def should_sample(self, parent_context: Context | None, *arguments: Any, **more: Any) -> SamplingResult:
        if baggage.get_baggage("debug", parent_context):
            return SamplingResult(Decision.RECORD_AND_SAMPLE)
        return super().should_sample(parent_context, *arguments, **more)


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_sampler_that_is_parent_based_in_a_way_of_its_own_is_asked(is_marked: bool) -> None:
    spans = Spans(ForDebugging(ALWAYS_OFF))

    @in_loop
    async def run() -> None:
        agent = Scripted(name="Bob")
        context = set_span_in_context(NonRecordingSpan(UNSAMPLED), Context())
        with traced(spans, agent), use(baggage.set_baggage("debug", "1", context) if is_marked else context):
            await handle(agent, note())

    run()
    assert spans.names() == (["process Bob"] if is_marked else [])


def test_samplers_and_processors_see_what_is_known_of_all_such_spans_from_the_start() -> None:
    sampler = Custom(Decision.RECORD_AND_SAMPLE)
    spans = Spans(sampler)
    seen: list[dict[str, Any]] = []

    class Watcher(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            seen.append(attributes_of(span))

    spans.provider.add_span_processor(Watcher())

    @in_loop
    async def run() -> None:
        await converse(spans)

    run()
    send, process = (
        {
            "messaging.system": "amptalk",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": "Bob",
            "message.type": "command",
            "gen_ai.agent.id": agent_id,
            "gen_ai.agent.name": agent,
        }
        for operation, agent_id, agent in (("send", "a", "Alice"), ("process", "b", "Bob"))
    )
    assert sampler.seen[:2] == [send, process]
    assert seen[:2] == [{}, {}]  # as the sampler has it, which passes nothing on
    for span, common in ((spans.one("send Bob"), send), (spans.one("process Bob"), process)):
        assert attributes_of(span).items() > common.items()
        assert "messaging.message.id" in attributes_of(span)
        assert "by the sampler" not in attributes_of(span)
    seen.clear()
    everything = Spans()
    everything.provider.add_span_processor(Watcher())

    @in_loop
    async def run_again() -> None:
        await converse(everything)

    run_again()
    assert seen[:2] == [send, process]


def test_a_sampler_of_its_own_is_asked_even_if_it_drops_everything() -> None:
    sampler = Custom(Decision.DROP)
    spans = Spans(sampler)

    @in_loop
    async def run() -> None:
        sent, _current = await converse(spans, UNSAMPLED)
        assert {carried(message)[3:35] for message in sent} == {f"{UNSAMPLED.trace_id:032x}"}

    run()
    assert [name for name, _kind in sampler.asked] == ["send Bob", "process Bob", "send Alice", "process Alice"]
    assert spans.names() == []


def test_spans_that_are_recorded_and_not_sampled_are_parents_and_are_not_exported() -> None:
    """RECORD_ONLY: span processors see them, exporters do not."""
    sampler = Custom(Decision.RECORD_ONLY)
    spans = Spans(sampler)
    seen: list[tuple[str, dict[str, Any]]] = []

    class Watcher(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append((span.name, attributes_of(span)))

    spans.provider.add_span_processor(Watcher())

    @in_loop
    async def run() -> None:
        sent, current = await converse(spans)
        assert len({of.trace_id for of in current}) == 1
        assert len({of.span_id for of in current}) == 2
        assert [int(carried(message)[-2:], 16) & TraceFlags.SAMPLED for message in sent] == [0, 0]

    run()
    assert [name for name, _attributes in seen] == ["send Bob", "process Bob", "send Alice", "process Alice"]
    assert all(attributes["messaging.system"] == "amptalk" for _name, attributes in seen)
    assert spans.names() == []


@pytest.mark.parametrize(
    ("sampler", "relation", "follows"),
    [
        (ParentBased(ALWAYS_ON), "parent", True),
        (ParentBasedTraceIdRatio(0.5), "parent", True),
        (ALWAYS_OFF, "parent", True),
        (ALWAYS_ON, "parent", False),
        (TraceIdRatioBased(0.0), "parent", False),
        (ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON), "parent", False),
        (ParentBased(ALWAYS_ON, local_parent_not_sampled=ALWAYS_ON), "parent", False),
        (ParentBased(ALWAYS_ON), "link", False),
        (ParentBased(ALWAYS_ON), "both", True),
        (Custom(Decision.DROP), "parent", False),
        (ForDebugging(ALWAYS_ON), "parent", False),
    ],
)
def test_an_unsampled_parent_decides_alone_only_where_the_sampler_would_have_it_so(
    sampler: Sampler, relation: str, follows: bool
) -> None:
    tracer = Spans(sampler, trace_relation=relation).tracer
    sampled = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    nothing = SpanContext(0, 0, is_remote=False)
    assert [bool(tracer.is_unsampled(of)) for of in (UNSAMPLED, REMOTE_UNSAMPLED)] == [follows, follows]
    assert [bool(tracer.is_unsampled(of)) for of in (sampled, nothing)] == [False, False]


def test_with_links_each_message_is_sampled_for_itself() -> None:
    """Its trace begins with it: what the sender's was does not count."""
    spans = Spans(ParentBased(ALWAYS_ON), trace_relation="link")

    @in_loop
    async def run() -> None:
        await converse(spans, UNSAMPLED)

    run()
    assert spans.names() == ["process Bob", "send Alice", "process Alice"]
    (link,) = spans.one("process Bob").links
    assert link.context.trace_id == UNSAMPLED.trace_id
    assert not link.context.trace_flags.sampled
