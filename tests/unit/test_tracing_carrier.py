"""What a message carries, by the propagators of the settings: through serialising and cloning, beside all the rest."""

from __future__ import annotations

import importlib.metadata
import json
import re
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from amptalk_otel import _traces, instrument_orchestrator
from amptalk_otel._tracing import _carrier
from amptalk_otel.demo.runtime import Message, MessageMetadata, MessagePriority, MessageType, Orchestrator
from tests.core_runtime import CoreMessage
from tests.support import CONFIG, Scripted, in_loop, note, provider_and_reader, settle
from tests.tracing import KEY, Spans, connect, context_of, id_of, parent_of, trace_of, traced

SENDER = SpanContext(0x1234, 0x5678, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
TRACEPARENT = f"00-{0x1234:032x}-{0x5678:016x}-01"


def carrier_of(*propagators: str) -> _carrier.Carrier:
    return Spans(propagators=propagators or ("tracecontext", "baggage")).tracer.carrier


def in_sender(span: SpanContext = SENDER) -> Context:
    return set_span_in_context(NonRecordingSpan(span), Context())


def received(carrier: _carrier.Carrier, message: Any) -> SpanContext:
    return get_current_span(carrier.extract(message, Context())).get_span_context()


def fields_of(message: Any) -> dict[str, Any]:
    """What a message carries, but for the mark of this process, which has to be there, and the ids of its span."""
    carried = dict(message.metadata.checkpoint_data[KEY])
    assert re.fullmatch("[0-9a-f]{16}", carried.pop(_carrier.SENDER))
    assert _carrier.is_ours(message.metadata.checkpoint_data[KEY])
    carried.pop(_carrier.SPAN, None)
    return carried


def full() -> Message:
    """A message that has something in every field."""
    metadata = MessageMetadata(
        conversation_id="meeting",
        parent_message_id="0",
        hop_count=3,
        recovery_attempts=[{"at": 1}],
        checkpoint_data={"transcribed": {"text": "hello", "parts": [1, 2]}},
        last_successful_stage="transcribed",
    )
    return note(
        MessageType.TRANSCRIPTION_RESULT,
        source_agent_id="a",
        target_agent_id="b",
        priority=MessagePriority.CRITICAL,
        payload={"text": "hello", "nested": {"list": [1, None, 2.5]}},
        metadata=metadata,
    )


def without_carrier(fields: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(fields))
    copy["metadata"]["checkpoint_data"].pop(KEY, None)
    return copy


def test_a_carrier_comes_through_json_as_it_was() -> None:
    carrier, message = carrier_of(), full()
    carrier.inject(message, in_sender())
    copy = Message.from_json(message.to_json())
    assert fields_of(copy) == {"traceparent": TRACEPARENT}
    of = received(carrier, copy)
    assert (of.trace_id, of.span_id, of.trace_flags, of.is_remote) == (0x1234, 0x5678, 1, True)


def test_nothing_else_of_a_message_changes() -> None:
    message = full()
    before = without_carrier(message.to_dict())
    carrier_of().inject(message, in_sender())
    assert fields_of(message) == {"traceparent": TRACEPARENT}
    after = message.to_dict()
    del after["metadata"]["checkpoint_data"][KEY]
    assert after == before


def test_baggage_and_trace_state_travel_along() -> None:
    state = TraceState([("vendor", "value")])
    span = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    context = baggage.set_baggage("tenant", "Köln & Bonn", in_sender(span))
    carrier, message = carrier_of(), note()
    carrier.inject(message, context)
    assert set(fields_of(message)) == {"traceparent", "tracestate", "baggage"}
    found = carrier.extract(Message.from_json(message.to_json()), Context())
    assert dict(baggage.get_all(found)) == {"tenant": "Köln & Bonn"}
    assert received(carrier, message).trace_state == state


def test_trace_state_travels_without_baggage() -> None:
    state = TraceState([("vendor", "value")])
    carrier, message = carrier_of(), note()
    carrier.inject(message, in_sender(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)))
    assert fields_of(message)["tracestate"] == "vendor=value"
    assert received(carrier, message).trace_state == state


def test_baggage_travels_without_a_trace() -> None:
    carrier, message = carrier_of(), note()
    carrier.inject(message, baggage.set_baggage("tenant", "town", Context()))
    assert fields_of(message) == {"baggage": "tenant=town"}


def test_the_shortcut_writes_what_the_propagators_would() -> None:
    flags = [TraceFlags(0), TraceFlags(1), TraceFlags(3)]
    spans = [SpanContext(2**127 + 5, 7, is_remote=False, trace_flags=flag) for flag in flags]
    shortcut, plain = carrier_of("tracecontext", "baggage"), carrier_of("tracecontext")
    for span in (*spans, SpanContext(0, 0, is_remote=False)):
        messages = note(), note()
        shortcut.inject(messages[0], in_sender(span))
        plain.inject(messages[1], in_sender(span))
        assert messages[0].metadata.checkpoint_data == messages[1].metadata.checkpoint_data


def test_the_ids_of_the_span_are_told_by_a_field_of_ours_where_there_is_no_traceparent() -> None:
    context = baggage.set_baggage("tenant", "town", in_sender())
    told = {}
    for names in ("tracecontext", "baggage"):
        message = note()
        carrier_of(names).inject(message, context)
        carried = message.metadata.checkpoint_data[KEY]
        told[names] = carried.get(_carrier.SPAN)
        assert _carrier.names(carried, SENDER)
        assert _carrier.is_of(SENDER.trace_id, carried)
        for other in (SpanContext(0x1234, 0x5679, is_remote=False), SpanContext(0x1235, 0x5678, is_remote=False)):
            assert not _carrier.names(carried, other)
        assert not _carrier.is_of(0x1235, carried)
    assert told == {"tracecontext": None, "baggage": f"{0x1234:032x}-{0x5678:016x}"}
    assert not received(carrier_of("baggage"), message).is_valid  # it is no context to go on with


def test_what_a_message_carried_before_is_replaced_or_taken_away() -> None:
    carrier, message = carrier_of(), note()
    carrier.inject(message, baggage.set_baggage("tenant", "town", in_sender()))
    carrier.inject(message, in_sender())
    assert fields_of(message) == {"traceparent": TRACEPARENT}
    carrier.inject(message, Context())
    assert KEY not in message.metadata.checkpoint_data


def test_a_message_without_such_metadata_carries_nothing_and_gets_nothing() -> None:
    carrier = carrier_of()
    core = CoreMessage("a", "b", "note", {})
    fields = dict(vars(core))
    odd = note()
    odd.metadata.checkpoint_data = ["mine"]  # type: ignore[assignment]
    for message in (core, odd, "text", None, 5):
        carrier.inject(message, in_sender())
        assert not received(carrier, message).is_valid
    assert vars(core) == fields
    assert odd.metadata.checkpoint_data == ["mine"]  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    "carried",
    [
        None, "text", 5, [], ["traceparent", TRACEPARENT], {}, {"traceparent": 5}, {"traceparent": None},
        {"traceparent": [TRACEPARENT]}, {5: TRACEPARENT}, {"traceparent": ""}, {"traceparent": TRACEPARENT[:-1]},
        {"traceparent": TRACEPARENT + "0"}, {"traceparent": "ff" + TRACEPARENT[2:]},
        {"traceparent": "00-" + "0" * 32 + "-" + "1" * 16 + "-01"}, {"traceparent": TRACEPARENT, "nested": {}},
        {"traceparent": TRACEPARENT, "baggage": "a=" + "b" * 16_384},
        {"traceparent": TRACEPARENT, **{f"field{index}": "" for index in range(16)}},
    ],
)  # fmt: skip
def test_what_is_malformed_or_too_large_is_ignored(carried: Any) -> None:
    message = note()
    message.metadata.checkpoint_data[KEY] = carried
    context = Context({"mine": 1})
    found = carrier_of().extract(message, context)
    assert not get_current_span(found).get_span_context().is_valid
    assert found["mine"] == 1


def test_what_is_just_small_enough_is_used() -> None:
    fields = {"traceparent": TRACEPARENT, **{f"x{index:02}": "" for index in range(14)}}
    fields["padding"] = ""
    assert len(fields) == _carrier.MAX_FIELDS
    fields["padding"] = "x" * (_carrier.MAX_LENGTH - sum(len(name) + len(value) for name, value in fields.items()))
    message = note()
    message.metadata.checkpoint_data[KEY] = fields
    assert received(carrier_of(), message).trace_id == 0x1234
    fields["padding"] += "x"
    assert not received(carrier_of(), message).is_valid


@in_loop
async def test_every_clone_of_a_broadcast_is_processed_in_the_trace_of_the_broadcast() -> None:
    spans, (provider, _reader) = Spans(), provider_and_reader()
    orchestrator = Orchestrator(name="town")
    agents = [Scripted(agent_id=name, name=name) for name in "ABC"]
    for agent in agents:
        orchestrator.register_agent(agent, ["all"])
    options: Any = {"config": CONFIG, "meter_provider": provider, "tracer_provider": spans.provider}
    with instrument_orchestrator(orchestrator, **options):
        await orchestrator.start()
        with spans.root("request"):
            await orchestrator.broadcast_message(note())
            await orchestrator.send_message_to_group(group_id="all", message=note())
        await settle()
        await orchestrator.stop()
    for name in ("send *", "send all"):
        send = spans.one(name)
        assert parent_of(send) == id_of(spans.one("request"))
        children = [span.name for span in spans.all() if parent_of(span) == id_of(send)]
        assert sorted(children) == ["process A", "process B", "process C"]
    assert {trace_of(span) for span in spans.all()} == {trace_of(spans.one("request"))}
    provider.shutdown()


# -- propagators ---------------------------------------------------------------------------------------


def test_without_propagators_nothing_is_carried_and_traces_go_on_in_the_process() -> None:
    spans = Spans(propagators=("none",))
    message = note(target_agent_id="b")

    @in_loop
    async def run() -> None:
        alice, bob = Scripted(agent_id="a", name="Alice"), Scripted(agent_id="b", name="Bob")
        connect(alice, bob)
        with traced(spans, alice, bob):
            await bob.start()
            await alice.send_message(message)
            await settle()
            await bob.stop()

    run()
    assert message.metadata.checkpoint_data == {}
    assert parent_of(spans.one("process Bob")) == id_of(spans.one("send Bob"))
    assert context_of(spans.one("process Bob")).is_valid


def test_only_what_the_settings_name_is_carried() -> None:
    context = baggage.set_baggage("tenant", "town", in_sender())
    for names, fields in ((("tracecontext",), {"traceparent"}), (("baggage",), {"baggage"})):
        message = note()
        carrier_of(*names).inject(message, context)
        assert set(fields_of(message)) == fields


def test_a_propagator_that_is_not_installed_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_traces, "entry_points", lambda **_kwargs: importlib.metadata.EntryPoints())
    carrier, message = carrier_of("b3multi", "tracecontext"), note()
    assert caplog.messages == [
        "messages do not carry b3multi: it is not installed; run: pip install opentelemetry-propagator-b3"
    ]
    carrier.inject(message, in_sender())
    assert fields_of(message) == {"traceparent": TRACEPARENT}


class Upright(TextMapPropagator):
    """One that another package would register."""

    fields: Any = frozenset({"upright"})

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        of = get_current_span(context).get_span_context()
        carrier["upright"] = f"{of.trace_id:x}:{of.span_id:x}"

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        trace_id, span_id = (int(part, 16) for part in carrier["upright"].split(":"))
        span = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1))
        return set_span_in_context(NonRecordingSpan(span), context)


def test_a_propagator_of_another_package_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    entry = importlib.metadata.EntryPoint("xray", f"{__name__}:Upright", "opentelemetry_propagator")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda _self: Upright)

    def found(**wanted: Any) -> list[importlib.metadata.EntryPoint]:
        asked.append(wanted)
        return [entry]

    monkeypatch.setattr(_traces, "entry_points", found)
    carrier, message = carrier_of("xray"), note()
    assert asked == [{"group": "opentelemetry_propagator", "name": "xray"}]
    carrier.inject(message, in_sender())
    assert fields_of(message) == {"upright": "1234:5678"}
    assert received(carrier, message).trace_id == 0x1234


@in_loop
async def test_a_handler_that_forwards_is_the_parent_with_any_propagator() -> None:
    theirs, ours = Spans(), Spans()
    theirs.tracer.carrier = ours.tracer.carrier = _carrier.Carrier(Upright())
    alice, bob, carol, stub = (
        Scripted(agent_id=name[0].lower(), name=name) for name in ("Alice", "Bob", "Carol", "Bob")
    )
    alice.connect(stub)
    connect(bob, carol)

    async def forward(message: Message) -> None:
        message.target_agent_id = "c"
        await bob.send_message(message)

    bob.script = [forward]
    message = note(target_agent_id="b")
    with traced(theirs, alice):
        await alice.send_message(message)
    message.metadata.checkpoint_data[KEY][_carrier.SENDER] = "0123456789abcdef"
    with traced(ours, bob, carol):
        for agent in (bob, carol):
            await agent.start()
        await bob.enqueue_message(message)
        await settle(20)
        for agent in (bob, carol):
            await agent.stop()
    process = ours.one("process Bob")
    assert (trace_of(process), parent_of(process)) == (
        trace_of(theirs.one("send Bob")), id_of(theirs.one("send Bob"))
    )  # fmt: skip
    assert ours.family()[1:] == [("send Carol", "process Bob"), ("process Carol", "send Carol")]


@pytest.mark.usefixtures("lenient_guard")
def test_a_propagator_that_can_not_be_loaded_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = importlib.metadata.EntryPoint("jaeger", "no_such_module:Jaeger", "opentelemetry_propagator")
    monkeypatch.setattr(_traces, "entry_points", lambda **_wanted: [entry])
    carrier, message = carrier_of("tracecontext", "jaeger"), note()
    assert len(caplog.messages) == 1
    assert "jaeger" in caplog.messages[0]
    carrier.inject(message, in_sender())
    assert fields_of(message) == {"traceparent": TRACEPARENT}
