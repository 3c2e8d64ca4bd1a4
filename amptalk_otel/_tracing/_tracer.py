"""Starts and ends spans, and knows what is not worth one."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TracerProvider

from amptalk_otel._labels import error_type_of
from amptalk_otel._tracing._attributes import AttributeValue, Description, of_send
from amptalk_otel._tracing._carrier import Carrier, carried_by, is_of, is_ours, names
from amptalk_otel._tracing._relation import Relation, answered
from amptalk_otel._version import SCOPE_NAME, __version__

_MOST_ON_THE_WAY = 10_000
_MOST_DESCRIPTIONS = 1_000
_MOST_FRAMES = 50  # the innermost

_EXEMPLARS: Mapping[str, Callable[[SpanContext], bool]] = {
    "trace_based": lambda span: span.trace_flags.sampled,
    "always_on": lambda span: span.is_valid,
    "always_off": lambda _span: False,
}
"""https://opentelemetry.io/docs/specs/otel/metrics/sdk/#exemplarfilter. An exemplar without a trace would tell nothing,
so there is none even with `always_on`."""


class MessageTracer:
    """The spans of one TracerProvider. Its methods may raise: callers guard them."""

    def __init__(
        self,
        provider: TracerProvider,
        carrier: Carrier,
        relation: Relation = Relation.PARENT,
        exemplar_filter: str = "trace_based",
    ) -> None:
        self.provider = provider
        self.carrier = carrier
        self._is_exemplary = _EXEMPLARS[exemplar_filter]
        self._shows_unsampled = exemplar_filter == "always_on"
        self._relation = relation
        self._tracer = provider.get_tracer(SCOPE_NAME, __version__)
        self._follows_parents = relation is not Relation.LINK and _follows_parents(provider)
        self._descriptions: dict[tuple[str | None, str, tuple[str, str] | None], Description] = {}
        self._on_the_way: dict[int, tuple[Any, Context]] = {}  # by id of the message

    # -- sending -------------------------------------------------------------------------------------

    def description_of_send(
        self, destination: str | None, message_type: str, sender: tuple[str, str] | None
    ) -> Description:
        """What the spans of such sends have in common. `sender`: id and name, if it is an agent."""
        key = destination, message_type, sender
        description = self._descriptions.get(key)
        if description is None:
            if len(self._descriptions) >= _MOST_DESCRIPTIONS:  # ids of agents that nobody knows are destinations too
                self._descriptions.clear()
            description = self._descriptions[key] = of_send(destination, message_type, sender)
        return description

    def start_send(self, description: Description, message: Any, context: Context) -> Span | None:
        """A span for a send in `context`; None where that is of a trace that is not sampled."""
        if self.is_unsampled(trace.get_current_span(context).get_span_context()):
            return None
        span = self._tracer.start_span(description.name, context, SpanKind.PRODUCER)
        if span.is_recording():
            span.set_attributes(description.of(message))
        return span

    def hand_over(self, message: Any, context: Context) -> None:
        """`message` was sent in `context`, and somebody who knows nothing of that brings it to its inbox."""
        if len(self._on_the_way) >= _MOST_ON_THE_WAY:
            self._on_the_way.clear()
        self._on_the_way[id(message)] = message, context

    def handed_over(self, message: Any) -> Context | None:
        """What was said of `message`, once."""
        if not self._on_the_way:
            return None
        known, context = self._on_the_way.pop(id(message), (None, None))
        return context if known is message else None

    def context_of(self, message: Any, current: Context, *, is_being_sent: bool) -> Context:
        """What a message belongs to: what it carries, or `current`, that of whoever sends it or puts it into an inbox.

        It goes on with what it carries: whoever puts it may be a task that reads from a socket, or puts what others
        sent, in a span of its own. Not so if `current` goes on with that itself, such as within the send, or in a
        handler that forwards what it works on. A message object that this process sends once more begins anew.
        """
        carried = carried_by(message)
        if carried is None:
            return current
        if is_being_sent and is_ours(carried):
            return current
        span = trace.get_current_span(current)
        of = span.get_span_context()
        if names(carried, of):  # the send is under way, sampled or not
            return current
        is_under_way = span.is_recording() or self.is_unsampled(of)
        if is_under_way and (is_of(of.trace_id, carried) or is_of(answered(current), carried)):
            return current
        return self.carrier.extract(message, Context())

    # -- processing ----------------------------------------------------------------------------------

    def start_process(
        self,
        description: Description,
        message: Any,
        sent_in: Context,
        *,
        taken_at_ns: int,
        waited_s: float | None,
        size_bytes: int | None,
    ) -> tuple[Context, Span | None]:
        """The context that the message is processed in, and its span; None where it is dropped."""
        sender = trace.get_current_span(sent_in).get_span_context()
        if self.is_unsampled(sender):
            return sent_in, None
        origin, links = self._relation.origin(sent_in, sender)
        span = self._tracer.start_span(description.name, origin, SpanKind.CONSUMER, links=links, start_time=taken_at_ns)
        context = trace.set_span_in_context(span, origin)
        if not span.is_recording():
            return context, None
        attributes = description.of(message)
        if waited_s is not None:
            attributes["amptalk.message.wait.duration"] = waited_s
        if size_bytes is not None:
            attributes["messaging.message.body.size"] = size_bytes
        span.set_attributes(attributes)
        return context, span

    def is_unsampled(self, parent: SpanContext) -> bool:
        """Whether a child of `parent` would be dropped for sure: then its decision is carried on, and nothing else."""
        return self._follows_parents and not parent.trace_flags & TraceFlags.SAMPLED and parent.is_valid

    def exemplary(self, span: Span | None, context: Context) -> SpanContext | None:
        """Of what a measurement made in `span` is an example; None where it may not be shown as one.

        `span` is that of `context`, or None for one that was dropped.
        """
        if span is None and not self._shows_unsampled:
            return None
        of = (trace.get_current_span(context) if span is None else span).get_span_context()
        return of if self._is_exemplary(of) else None

    # -- the rest ------------------------------------------------------------------------------------

    def start_inside(self, name: str, attributes: Mapping[str, AttributeValue]) -> Inside | None:
        """An INTERNAL span around what the current task does next; None where it would be dropped."""
        current = contexts.get_current()
        if self.is_unsampled(trace.get_current_span(current).get_span_context()):
            return None
        return Inside(self._tracer.start_span(name, current, SpanKind.INTERNAL, attributes), current)


class Watcher(Protocol):
    """Whoever watches something, and may bring a tracer."""

    @property
    def tracer(self) -> MessageTracer | None: ...


def first_tracer(watchers: Iterable[Watcher]) -> MessageTracer | None:
    """The one that is used where several watch the same: a message has one span."""
    return next((watcher.tracer for watcher in watchers if watcher.tracer is not None), None)


class Inside:
    """Something that an agent does besides messages. Its context is current from the constructor to `end`."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span, base: Context) -> None:
        self._span = span
        self._token: Any = contexts.attach(trace.set_span_in_context(span, base))

    def end(self, error: BaseException | None = None) -> None:
        """It returned, or raised `error`."""
        leave(self._token, error)
        tell_error(self._span, error, "operation")
        self._span.end()


def leave(token: Any, error: BaseException | None) -> None:
    """The context before is current again.

    A coroutine that is closed by the garbage collector ends in a context of somebody else, which stays as it is.
    """
    if not isinstance(error, GeneratorExit):
        contexts.detach(token)


def is_cancelled(error: BaseException | None) -> bool:
    """Whether it was ended from outside."""
    return isinstance(error, (asyncio.CancelledError, GeneratorExit))


def tell_error(span: Span, error: BaseException | None, what: str = "message", ended_ns: int | None = None) -> None:
    """How `what` ended, where that is not well, and when, if not now. Cancellation is a state, not an error."""
    if error is None or not span.is_recording():
        return
    if is_cancelled(error):
        span.set_attribute(f"amptalk.{what}.state", "cancelled")
    else:
        _fail(span, error, ended_ns)


def _fail(span: Span, error: BaseException, ended_ns: int | None) -> None:
    """Tell of a failure: its type, and where it happened, but not its message, which may quote a payload."""
    kind = error_type_of(error)
    span.set_attribute("error.type", kind)
    stack = "".join(traceback.format_tb(error.__traceback__, limit=-_MOST_FRAMES))
    span.add_event("exception", {"exception.type": kind, "exception.stacktrace": stack}, ended_ns)
    span.set_status(Status(StatusCode.ERROR, kind))


def _follows_parents(provider: TracerProvider) -> bool:
    """Whether the provider drops what has an unsampled parent, local or remote, without looking at anything else."""
    sampler = getattr(provider, "sampler", None)
    if sampler is ALWAYS_OFF:
        return True
    return isinstance(sampler, ParentBased) and all(
        getattr(sampler, name, None) is ALWAYS_OFF
        for name in ("_local_parent_not_sampled", "_remote_parent_not_sampled")
    )
