"""Whatever a message carries, it is handled: nothing raises, nothing is lost, and what is not a context is ignored."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.baggage import get_all, set_baggage
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context

from amptalk_otel._tracing._carrier import MAX_FIELDS, MAX_LENGTH
from amptalk_otel.demo.runtime import Message
from tests.support import Scripted, counts, examples, note
from tests.tracing import KEY, Spans, parent_of, trace_of, traced

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALID = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
GOOD = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

TEXTS = st.one_of(
    st.text(),
    st.just(TRACEPARENT),
    st.from_regex(VALID, fullmatch=True),
    st.text("0123456789abcdef-", min_size=50, max_size=60),
    st.text("ab=,;% é\n", max_size=30),
    st.sampled_from(["x" * (MAX_LENGTH - 20), "x" * MAX_LENGTH]),
)
NAMES = st.one_of(st.sampled_from(["traceparent", "tracestate", "baggage"]), st.text(max_size=20))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=8,
)
CARRIED = st.one_of(
    JSON,
    st.dictionaries(NAMES, TEXTS, max_size=MAX_FIELDS + 4),
    st.dictionaries(NAMES, st.one_of(TEXTS, JSON), max_size=5),
    st.dictionaries(st.one_of(NAMES, st.integers()), TEXTS, max_size=3),
)
LETTERS = st.characters(categories=["L", "N"])
BAGGAGE = st.from_regex(r"[a-z]{1,10}", fullmatch=True)
CARRIER = Spans().tracer.carrier


def is_ignored(carried: Any) -> bool:
    """By what the documentation says; of what remains, W3C's rules decide."""
    if not isinstance(carried, dict) or len(carried) > MAX_FIELDS:
        return True
    if not all(isinstance(text, str) and text.isascii() for field in carried.items() for text in field):
        return True
    return sum(len(name) + len(value) for name, value in carried.items()) > MAX_LENGTH


@given(carried=CARRIED)
@example(carried={"traceparent": TRACEPARENT})
@example(carried={"traceparent": TRACEPARENT, "baggage": "a=b"})
@example(carried={"traceparent": "\udc80" * 55, "baggage": "\udc80=\udc80"})
@settings(max_examples=examples(1_000))
def test_whatever_is_there_extracting_gives_a_context(carried: Any) -> None:
    message = note()
    message.metadata.checkpoint_data[KEY] = carried
    before = repr(message)
    base = Context({"mine": 1})
    found = CARRIER.extract(message, base)
    assert found["mine"] == 1
    assert repr(message) == before
    of = get_current_span(found).get_span_context()
    if is_ignored(carried):
        assert found == base
    elif of.is_valid:
        assert carried["traceparent"].strip()[3:52] == f"{of.trace_id:032x}-{of.span_id:016x}"
        assert of.is_remote
    else:
        assert not GOOD.fullmatch(carried.get("traceparent", ""))


@given(carried=st.lists(CARRIED, min_size=1, max_size=8))
@settings(max_examples=examples(300))
def test_no_message_is_lost_whatever_it_carries(carried: list[Any]) -> None:
    spans, agent = Spans(), Scripted(name="Bob")
    messages = [note() for _ in carried]
    for message, one in zip(messages, carried, strict=True):
        message.metadata.checkpoint_data[KEY] = one

    async def run() -> None:
        with traced(spans, agent) as (hook,):
            await agent.start()
            for message in messages:
                await agent.enqueue_message(message)
            await asyncio.wait_for(agent.input_queue.join(), 20)
            await agent.stop()
            number = len(messages)
            assert counts(hook.read()) == {"received": number, "processed": number, "waits": number, "works": number}

    asyncio.run(run())
    assert [message.message_id for message in agent.seen] == [message.message_id for message in messages]
    recorded = len(spans.named("process Bob"))
    unsampled = sum(1 for message in messages if not is_sampled(message))
    assert recorded == len(messages) - unsampled


def is_sampled(message: Message) -> bool:
    """Whether a new span for it is sampled: yes, unless it carries a context that is not."""
    of = get_current_span(CARRIER.extract(message, Context())).get_span_context()
    return not of.is_valid or bool(of.trace_flags & TraceFlags.SAMPLED)


@given(
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    flags=st.sampled_from([0, 1]),
    pairs=st.dictionaries(BAGGAGE, st.text(LETTERS, max_size=20), max_size=5),
    payload=st.dictionaries(st.text(), st.one_of(st.integers(), st.text()), max_size=4),
    stages=st.dictionaries(st.text(max_size=10).filter(lambda name: name != KEY), JSON, max_size=4),
)
@settings(max_examples=examples(500))
def test_a_context_comes_through_json_and_leaves_the_rest_alone(
    trace_id: int, span_id: int, flags: int, pairs: dict[str, str], payload: dict[str, Any], stages: dict[str, Any]
) -> None:
    context = set_span_in_context(
        NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags))), Context()
    )
    for name, value in pairs.items():
        context = set_baggage(name, value, context)
    message = note(payload=payload)
    message.metadata.checkpoint_data.update(stages)
    before = json.dumps(message.to_dict())
    CARRIER.inject(message, context)
    copy = Message.from_json(message.to_json())
    found = CARRIER.extract(copy, Context())
    of = get_current_span(found).get_span_context()
    assert (of.trace_id, of.span_id, of.trace_flags) == (trace_id, span_id, flags)
    assert dict(get_all(found)) == pairs
    del message.metadata.checkpoint_data[KEY]
    assert json.dumps(message.to_dict()) == before


@given(carried=CARRIED)
@settings(max_examples=examples(300))
def test_a_span_belongs_to_what_is_carried_or_to_nothing(carried: Any) -> None:
    spans, agent, message = Spans(), Scripted(name="Bob"), note()
    message.metadata.checkpoint_data[KEY] = carried

    async def run() -> None:
        with traced(spans, agent):
            await agent.start()
            await agent.enqueue_message(message)
            await asyncio.wait_for(agent.input_queue.join(), 20)
            await agent.stop()

    asyncio.run(run())
    of = get_current_span(CARRIER.extract(message, Context())).get_span_context()
    for span in spans.named("process Bob"):
        assert parent_of(span) == (of.span_id if of.is_valid else None)
        assert not of.is_valid or trace_of(span) == of.trace_id
