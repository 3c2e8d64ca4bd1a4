"""Starts and ends spans, and knows what is not worth one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import Span, SpanContext, SpanKind, TraceFlags, TracerProvider

from amptalk_otel._guard import guarded
from amptalk_otel._tracing._attributes import AttributeValue, Description, of_message, of_send
from amptalk_otel._tracing._carrier import Carrier, carried_by, is_of, is_ours, names
from amptalk_otel._tracing._current import current_context, identity_of, sent_by
from amptalk_otel._tracing._ending import tell_error
from amptalk_otel._tracing._known import Known
from amptalk_otel._tracing._relation import Relation, answered
from amptalk_otel._version import SCOPE_NAME, __version__

_MOST_ON_THE_WAY = 10_000
_MOST_DESCRIPTIONS = 1_000
_MOST_OVERTAKEN = 1_000

_NOTHING: Mapping[str, AttributeValue] = {}

_EXEMPLARS: Mapping[str, Callable[[SpanContext], bool]] = {
    "trace_based": lambda span: span.trace_flags.sampled,
    "always_on": lambda span: span.is_valid,
    "always_off": lambda _span: False,
}
"""https://opentelemetry.io/docs/specs/otel/metrics/sdk/#exemplarfilter. An exemplar without a trace would tell nothing,
so there is none even with `always_on`."""

_overtaken: Known[Context] = Known(_MOST_OVERTAKEN)  # contexts of blocks that ended before one in them: those before


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
        self._sampler_is_known = _is_known(getattr(provider, "sampler", None))
        self._descriptions: dict[tuple[str | None, str, tuple[str, str] | None], Description] = {}
        self._on_the_way: Known[Context] = Known(_MOST_ON_THE_WAY)

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
        span = self._tracer.start_span(description.name, context, SpanKind.PRODUCER, self._shown(description))
        if span.is_recording():
            self._tell(span, description, message)
        return span

    def hand_over(self, message: Any, context: Context) -> None:
        """`message` was sent in `context`, and somebody who knows nothing of that brings it to its inbox."""
        self._on_the_way.keep(message, context)

    def handed_over(self, message: Any) -> Context | None:
        """What was said of `message`, once."""
        return self._on_the_way.take(message) if self._on_the_way else None

    def context_of(self, message: Any, *, is_being_sent: bool) -> Context:
        """What a message belongs to: what it carries, or the context of whoever sends it or puts it into an inbox.

        It goes on with what it carries: whoever puts it may be a task that reads from a socket, or puts what others
        sent, in a span of its own. Not so within its own send, whatever it carries by now: copies may share that. Nor
        in what goes on with what it carries itself, such as a handler that forwards what it works on, unless that is
        the send of another message. A message object that this process sends once more begins anew.
        """
        current = current_context()
        carried = carried_by(message)
        if carried is None or (is_being_sent and is_ours(carried)):
            return current
        span = trace.get_current_span(current)
        of = span.get_span_context()
        sent = sent_by(of)
        if (sent is not None and sent == identity_of(message)) or names(carried, of):
            return current
        goes_on = sent is None and (span.is_recording() or self.is_unsampled(of))
        if goes_on and (is_of(of.trace_id, carried) or is_of(answered(current), carried)):
            return current
        found = self.carrier.extract(message, Context())
        is_found = trace.get_current_span(found).get_span_context().is_valid
        return found if is_found else self.carrier.extract(message, current)

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
        span = self._tracer.start_span(
            description.name, origin, SpanKind.CONSUMER, self._shown(description), links, start_time=taken_at_ns
        )
        context = trace.set_span_in_context(span, origin)
        if not span.is_recording():
            return context, None
        attributes: dict[str, AttributeValue] = {}
        if waited_s is not None:
            attributes["amptalk.message.wait.duration"] = waited_s
        if size_bytes is not None:
            attributes["messaging.message.body.size"] = size_bytes
        self._tell(span, description, message, attributes)
        return context, span

    def _shown(self, description: Description) -> dict[str, AttributeValue]:
        """What samplers see of a span, and processors when it starts. One of the program's may write into it."""
        return description.attributes if self._sampler_is_known else description.attributes.copy()

    def _tell(
        self, span: Span, description: Description, message: Any, more: Mapping[str, AttributeValue] = _NOTHING
    ) -> None:
        """What was not known when the span began. A message that can't be looked at has its span all the same."""
        attributes: dict[str, AttributeValue] = guarded("looking at a message", of_message, message) or {}
        attributes.update(more)
        span.set_attributes(attributes if self._sampler_is_known else {**description.attributes, **attributes})

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
        base = current_context()
        if self.is_unsampled(trace.get_current_span(base).get_span_context()):
            return None
        return Inside(self._tracer.start_span(name, base, SpanKind.INTERNAL, attributes), base)


class Watcher(Protocol):
    """Whoever watches something, and may bring a tracer."""

    @property
    def tracer(self) -> MessageTracer | None: ...


def first_tracer(watchers: Iterable[Watcher]) -> MessageTracer | None:
    """The one that is used where several watch the same: a message has one span."""
    return next((watcher.tracer for watcher in watchers if watcher.tracer is not None), None)


class Inside:
    """Something that an agent does besides messages. Its context is current from the constructor to `end`."""

    __slots__ = ("_before", "_context", "_span")

    def __init__(self, span: Span, base: Context) -> None:
        self._span = span
        self._before = contexts.get_current()
        self._context = trace.set_span_in_context(span, base)
        contexts.attach(self._context)

    def end(self, error: BaseException | None = None) -> None:
        """It returned, or raised `error`."""
        try:
            if not isinstance(error, GeneratorExit):  # see `leave`
                self._leave()
            tell_error(self._span, error, "operation")
        finally:
            self._span.end()

    def _leave(self) -> None:
        """The context before is current again. Of blocks that overlap, whoever ends last sees to that."""
        if trace.get_current_span() is not self._span:
            _overtaken.keep(self._context, self._before)
            return
        before = self._before
        while (further := _overtaken.take(before)) is not None:
            before = further
        contexts.attach(before)


def _follows_parents(provider: TracerProvider) -> bool:
    """Whether the provider drops what has an unsampled parent, local or remote, without looking at anything else."""
    sampler = getattr(provider, "sampler", None)
    if sampler is ALWAYS_OFF:
        return True
    is_parent_based = getattr(type(sampler), "should_sample", None) is ParentBased.should_sample  # not a way of its own
    return is_parent_based and all(
        getattr(sampler, name, None) is ALWAYS_OFF
        for name in ("_local_parent_not_sampled", "_remote_parent_not_sampled")
    )


def _is_known(sampler: Any) -> bool:
    """Whether it is one of the SDK's own: these do not change the attributes that they see, and pass them on."""
    return type(sampler).__module__ == ParentBased.__module__ and all(
        _is_known(part) for part in vars(sampler).values() if isinstance(part, Sampler)
    )
