"""The traces of one agent: what its messages were sent in, worked on in, and answered in."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from amptalk_otel._guard import swallow
from amptalk_otel._labels import message_of
from amptalk_otel._tracing._attributes import Description, of_process
from amptalk_otel._tracing._sending import Sending
from amptalk_otel._tracing._tracer import MessageTracer, is_cancelled, leave, tell_error
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

    __slots__ = ("_agent", "_clock", "_descriptions", "_in_work", "_replies", "_sizes", "_started_in", "_tracer")

    def __init__(self, tracer: MessageTracer, agent: tuple[str, str], clock: Callable[[], float]) -> None:
        """`agent`: its id and its name; `clock`: that of its recorder."""
        self._tracer = tracer
        self._agent = agent
        self._clock = clock
        self._descriptions: dict[TypeRecorder, Description] = {}
        self._in_work = 0
        self._replies: dict[int, tuple[Callable[[], Any], Context]] = {}  # by id of what a handler returned
        self._sizes: dict[int, tuple[Callable[[], Any], int]] = {}  # of payloads, by id of a message that was measured
        self._started_in: Span = INVALID_SPAN

    def starts(self) -> None:
        """The agent is being started: its tasks keep the span that is current now, and do not belong to it for ever."""
        self._started_in = trace.get_current_span()

    # -- arriving ------------------------------------------------------------------------------------

    def sent_in(self, item: Any) -> Context | None:
        """The context that a message comes from, asked for where it is put into the inbox; None if that fails."""
        try:
            message = message_of(item)
            handed_over = self._tracer.handed_over(message)
            if handed_over is not None:
                return handed_over
            return self._tracer.context_of(message, self._current(), is_being_sent=False)
        except Exception:
            swallow("looking for the context of a message")
            return None

    def _current(self) -> Context:
        """The current context, without the span that the agent was started in, once that is over."""
        current = contexts.get_current()
        if self._started_in is INVALID_SPAN:
            return current
        span = trace.get_current_span(current)
        if span is self._started_in and not span.is_recording():
            return trace.set_span_in_context(INVALID_SPAN, current)
        return current

    def sized(self, message: Any, size_bytes: int) -> None:
        """The payload of a message that waits was measured."""
        if len(self._sizes) >= _MOST_SIZES:  # of messages that were never processed
            self._sizes.clear()
        self._sizes[id(message)] = _weakly(message), size_bytes

    def _size_of(self, message: Any) -> int | None:
        if not self._sizes:
            return None
        known, size_bytes = self._sizes.pop(id(message), (None, None))
        return size_bytes if known is not None and known() is message else None

    # -- processing ----------------------------------------------------------------------------------

    def begin(
        self, message: Any, record: TypeRecorder, sent_in: Context | None, taken_at: float, waited_s: float | None
    ) -> Work:
        """Processing begins; the context is current from now on, in this task."""
        if not self._in_work:
            self._replies.clear()  # what a handler returned is sent before the next message is taken
        started_ns = time.time_ns() - int((self._clock() - taken_at) * 1e9)
        context, span = self._tracer.start_process(
            self._description_of(record),
            message,
            sent_in if sent_in is not None else self._tracer.carrier.extract(message, Context()),
            taken_at_ns=started_ns,
            waited_s=waited_s,
            size_bytes=self._size_of(message),
        )
        example_of = self._tracer.exemplary(span, context)
        if example_of is not None and waited_s is not None:
            record.wait.exemplify(waited_s, time.time_ns(), example_of.trace_id, example_of.span_id)
        work = Work(context, span, example_of, record, started_ns)
        self._in_work += 1
        return work

    def _description_of(self, record: TypeRecorder) -> Description:
        description = self._descriptions.get(record)
        if description is None:
            description = self._descriptions[record] = of_process(record.message_type, self._agent)
        return description

    def end(self, work: Work, seconds: float, result: Any = None, error: BaseException | None = None) -> None:
        """Processing ended, as many seconds after the message was taken. The context before is current again."""
        self._in_work -= 1
        leave(work.token, error)
        if isinstance(result, (list, tuple)) and len(result) <= _MOST_REPLIES:
            self._remember_replies(result, work.context)
        span, example_of = work.span, work.example_of
        if example_of is not None and not is_cancelled(error):
            work.record.process.exemplify(seconds, time.time_ns(), example_of.trace_id, example_of.span_id)
        if span is not None and span.is_recording():
            # The same duration as the histogram's, whatever happens to the system's clock.
            ended_ns = work.started_ns + int(seconds * 1e9)
            tell_error(span, error, ended_ns=ended_ns)
            span.end(ended_ns)

    def _remember_replies(self, result: Iterable[Any], context: Context) -> None:
        """What a handler returns is sent when it is over, but belongs to what it did."""
        if len(self._replies) > _MOST_REPLIES:  # of an agent that does not send them
            self._replies.clear()
        for message in result:
            self._replies[id(message)] = _weakly(message), context

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

    def lost(self, message: Any) -> None:
        """Nobody takes a message from the outbox to an inbox."""
        self._tracer.handed_over(message)

    def _base_of(self, message: Any) -> Context:
        """What a send belongs to. What a handler returned belongs to what that did, though it is sent after it."""
        if self._replies:
            known, context = self._replies.pop(id(message), (None, None))
            if known is not None and context is not None and known() is message:
                return context
        return self._tracer.context_of(message, self._current(), is_being_sent=True)


def _weakly(message: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(message)
    except TypeError:
        return lambda: message
