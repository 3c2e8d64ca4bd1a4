"""The same spans, made by hand: what a careful person would write with the bare SDK, into the counters' own methods.

The counters are those of `by_hand.PlainIntegers`. A span has the name, the kind and the attributes that the package
gives it, and these are put together only if it is recorded.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer

from amptalk_otel.demo.runtime import Message, SimpleAgent
from tests.benchmarks.by_hand import BOUNDS_S, PlainIntegers

CARRIER = "by_hand.context"
"""Where in `checkpoint_data` a message carries its context."""


class SendingPlainIntegers(PlainIntegers):
    """The floor of a message that is sent: counts sends as well, by message type, and how long they take.

    The package tells for how long an agent is blocked because a send waits. By hand, two looks at the clock are the
    cheapest way to anything like it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: dict[str, int] = {}
        self.undelivered = 0
        self.sending_s = 0.0

    async def send_message(self, message: Message) -> bool:
        started = perf_counter()
        delivered = await super().send_message(message)
        self.sending_s += perf_counter() - started
        if delivered:
            kind = message.message_type._value_
            self.sent[kind] = self.sent.get(kind, 0) + 1
        else:
            self.undelivered += 1
        return delivered


class _Traced(SendingPlainIntegers):
    """Makes a `process` span of each message, in the context that `_sent_in` finds."""

    tracer: Tracer

    def _sent_in(self, message: Message) -> Context:
        raise NotImplementedError

    async def _process_with_retry(self, message: Message) -> list[Message] | None:
        started = perf_counter()
        numbers = self.numbers[message.message_type._value_]
        wait = started - self.arrivals.pop(id(message))
        numbers.wait_counts[bisect_left(BOUNDS_S, wait)] += 1
        numbers.wait_sum += wait
        numbers.in_flight += 1
        try:
            name, sent_in = f"process {self.name}", self._sent_in(message)
            with self.tracer.start_as_current_span(name, sent_in, SpanKind.CONSUMER) as span:
                if span.is_recording():
                    attributes = _attributes("process", self.name, self, message)
                    attributes["amptalk.message.wait.duration"] = wait
                    span.set_attributes(attributes)
                replies = await super(PlainIntegers, self)._process_with_retry(message)
        except BaseException:
            numbers.failed += 1
            raise
        else:
            numbers.processed += 1
            return replies
        finally:
            numbers.in_flight -= 1
            took = perf_counter() - started
            numbers.process_counts[bisect_left(BOUNDS_S, took)] += 1
            numbers.process_sum += took


def processing_agent(tracer_by_hand: Tracer) -> type[PlainIntegers]:
    """An agent class whose messages are processed in the context in which they were put into the inbox."""

    class Processing(_Traced):
        tracer = tracer_by_hand

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.contexts: dict[int, Context] = {}

        async def enqueue_message(self, message: Message) -> None:
            self.contexts[id(message)] = contexts.get_current()
            await super().enqueue_message(message)

        def _sent_in(self, message: Message) -> Context:
            return self.contexts.pop(id(message))

    return Processing


def sending_agent(tracer_by_hand: Tracer) -> type[SendingPlainIntegers]:
    """An agent class that makes a `send` span, too. The message carries its context to the one who processes it.

    With the global propagator, which is that of W3C's trace context and baggage.
    """

    class Sending(_Traced):
        tracer = tracer_by_hand

        async def send_message(self, message: Message) -> bool:
            target = self.connected_agents[message.target_agent_id or ""].name
            with self.tracer.start_as_current_span(f"send {target}", kind=SpanKind.PRODUCER) as span:
                if span.is_recording():
                    span.set_attributes(_attributes("send", target, self, message))
                carrier: dict[str, str] = {}
                propagate.inject(carrier)
                message.metadata.checkpoint_data[CARRIER] = carrier
                return await super().send_message(message)

        def _sent_in(self, message: Message) -> Context:
            return propagate.extract(message.metadata.checkpoint_data[CARRIER])

    return Sending


def _attributes(operation: str, destination: str, agent: SimpleAgent, message: Message) -> dict[str, str | float]:
    """What the package's spans say of a message without a conversation."""
    return {
        "messaging.system": "amptalk",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
        "messaging.message.id": message.message_id,
        "message.type": message.message_type._value_,
        "amptalk.message.priority": message.priority._name_.lower(),
        "gen_ai.agent.id": agent.agent_id,
        "gen_ai.agent.name": agent.name,
    }
