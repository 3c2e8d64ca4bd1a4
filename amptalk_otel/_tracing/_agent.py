"""The traces of one agent: what its messages were sent in, worked on in, and answered in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext

from amptalk_otel._guard import swallow
from amptalk_otel._labels import message_of
from amptalk_otel._tracing._attributes import Description, of_process
from amptalk_otel._tracing._ending import is_cancelled, leave, tell_error
from amptalk_otel._tracing._known import Known
from amptalk_otel._tracing._sending import Sending
from amptalk_otel._tracing._tracer import MessageTracer
from amptalk_otel._type_recorder import TypeRecorder

_MOST_SIZES = 1_000
_MOST_REPLIES = 1_000


class Work:
    """One message being processed. Its context is current from the constructor to `leave`, in this task."""

    __slots__ = ("context", "example_of", "record", "span", "started_ns", "token")

    def __init__(
        self,
        context: Context,
        span: Span | None,
        example_of: SpanContext | None,
        record: TypeRecorder,
        started_ns: int,
    ) -> None:
        """`example_of`: the span of which its measurements are examples, if they may be shown as such."""
        self.context = context
        self.span = span
        self.example_of = example_of
        self.record = record
        self.started_ns = started_ns
        self.token: Any = contexts.attach(context)


class Attempts:
    """Those at one message that failed once, as events of its span."""

    __slots__ = ("_clock", "_failed_at_s", "_made", "_span")

    def __init__(self, span: Span, clock: Callable[[], float]) -> None:
        self._span = span
        self._clock = clock
        self._made = 1
        self._failed_at_s = 0.0

    def failed(self, error_type: str) -> None:
        """An attempt ended in an error."""
        self._failed_at_s = self._clock()
        self._span.add_event("attempt failed", {"error.type": error_type, "amptalk.attempt": self._made})

    def retried(self) -> None:
        """Another attempt begins."""
        self._made += 1
        backoff_s = self._clock() - self._failed_at_s
        self._span.add_event("retry", {"amptalk.attempt": self._made, "amptalk.backoff": backoff_s})


class AgentTracing:
    """Written by the loop that runs the agent, as its recorder."""

    __slots__ = ("_agent", "_clock", "_descriptions", "_sizes", "_tracer", "replies")

    def __init__(
        self,
        tracer: MessageTracer,
        agent: tuple[str, str],
        clock: Callable[[], float],
        replies: Known[Context] | None = None,
    ) -> None:
        """`agent`: its id and its name; `clock`: that of its recorder; `replies`: those of whose place this takes."""
        self._tracer = tracer
        self._agent = agent
        self._clock = clock
        self._descriptions: dict[TypeRecorder, Description] = {}
        self.replies: Known[Context] = Known(_MOST_REPLIES) if replies is None else replies
        """The contexts of handlers, by the messages that they returned."""
        self._sizes: Known[int] = Known(_MOST_SIZES)  # of payloads, by the message that was measured

    # -- arriving ------------------------------------------------------------------------------------

    def sent_in(self, item: Any) -> Context | None:
        """The context that a message comes from, asked for where it is put into the inbox; None if that fails."""
        try:
            message = message_of(item)
            handed_over = self._tracer.handed_over(message)
            if handed_over is not None:
                return handed_over
            return self._tracer.context_of(message, is_being_sent=False)
        except Exception:
            swallow("looking for the context of a message")
            return None

    def sized(self, message: Any, size_bytes: int) -> None:
        """The payload of a message that waits was measured."""
        self._sizes.keep(message, size_bytes)

    # -- processing ----------------------------------------------------------------------------------

    def begin(
        self, message: Any, record: TypeRecorder, sent_in: Context | None, taken_at: float, waited_s: float | None
    ) -> Work:
        """Processing begins; the context is current from now on, in this task."""
        if self.replies.held:
            self.replies.let_go()  # what a handler returned is sent before the next message is taken, nearly always
        started_ns = time.time_ns() - int((self._clock() - taken_at) * 1e9)
        context, span = self._tracer.start_process(
            self._description_of(record),
            message,
            sent_in if sent_in is not None else self._tracer.carrier.extract(message, Context()),
            taken_at_ns=started_ns,
            waited_s=waited_s,
            size_bytes=self._sizes.take(message) if self._sizes else None,
        )
        example_of = self._tracer.exemplary(span, context)
        if example_of is not None and waited_s is not None:
            record.wait.exemplify(waited_s, time.time_ns(), example_of.trace_id, example_of.span_id)
        return Work(context, span, example_of, record, started_ns)

    def _description_of(self, record: TypeRecorder) -> Description:
        description = self._descriptions.get(record)
        if description is None:
            description = self._descriptions[record] = of_process(record.message_type, self._agent)
        return description

    def end(self, work: Work, seconds: float, result: Any = None, error: BaseException | None = None) -> None:
        """Processing ended, as many seconds after the message was taken. The context before is current again."""
        span, example_of = work.span, work.example_of
        # The same duration as the histogram's, whatever happens to the system's clock.
        ended_ns = work.started_ns + int(seconds * 1e9)
        try:
            leave(work.token, error)
            if isinstance(result, (list, tuple)):
                self._remember_replies(result, work.context)
            if example_of is not None and not is_cancelled(error):
                work.record.process.exemplify(seconds, time.time_ns(), example_of.trace_id, example_of.span_id)
            if span is not None:
                tell_error(span, error, ended_ns=ended_ns)
        finally:
            if span is not None and span.is_recording():
                span.end(ended_ns)

    def _remember_replies(self, result: Sequence[Any], context: Context) -> None:
        """What a handler returns is sent when it is over, but belongs to what it did."""
        for message in result[:_MOST_REPLIES]:
            self.replies.keep(message, context)

    def attempts_at(self, work: Work) -> Attempts | None:
        """What is told of failed attempts, the first of which ended just now; None where nothing is."""
        span = work.span
        return Attempts(span, self._clock) if span is not None and span.is_recording() else None

    # -- sending -------------------------------------------------------------------------------------

    def begin_send(self, destination: str | None, message: Any, message_type: str) -> Sending:
        """A send by the agent."""
        description = self._tracer.description_of_send(destination, message_type, self._agent)
        return Sending(self._tracer, description, message, self._base_of(message))

    def sent_on(self, destination: str | None, message: Any, message_type: str) -> None:
        """The agent put a message into its outbox, from which somebody takes it to an inbox later."""
        sending = self.begin_send(destination, message, message_type)
        sending.end()
        self._tracer.hand_over(message, sending.context)

    def _base_of(self, message: Any) -> Context:
        """What a send belongs to. What a handler returned belongs to what that did, though it is sent after it."""
        context = self.replies.take(message) if self.replies else None
        return context if context is not None else self._tracer.context_of(message, is_being_sent=True)
