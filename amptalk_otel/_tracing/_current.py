"""What the current task does: the context it is in, without what it was started in; and sends that are under way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext

from amptalk_otel._tracing._known import Known

_MOST_STARTS = 1_000

_starts: Known[None] = Known(_MOST_STARTS)  # spans that agents were started in
_sends: dict[int, object] = {}  # by the id of their span: what message is sent


# -- what an agent was started in ----------------------------------------------------------------------


def current_context() -> Context:
    """The current context. An empty one, where that is what an agent was started in, and its span is over.

    An agent's tasks keep what was current when they were started, and do not belong to it for ever.
    """
    current = contexts.get_current()
    if _starts:
        span = trace.get_current_span(current)
        if id(span) in _starts and not span.is_recording():
            return Context()
    return current


def agent_starts() -> None:
    """An agent is being started in what is current, or its task looked at for the first time."""
    _started_in(trace.get_current_span())


def agent_runs(tasks: Iterable[Any]) -> None:
    """An agent with these tasks was started unseen. Before Python 3.12 nobody can look at them."""
    for task in tuple(tasks):
        if hasattr(task, "get_context"):
            _started_in(task.get_context().copy().run(trace.get_current_span))


def _started_in(span: Span) -> None:
    # One that is not recorded has no end that could be seen: also one of another process.
    if span.is_recording() or getattr(span, "end_time", None) is not None:
        _starts.keep(span, None)


# -- sends ---------------------------------------------------------------------------------------------


def send_begins(span: SpanContext, message: Any) -> None:
    """`span` is around the send of a message from now on."""
    if span.is_valid:
        _sends[span.span_id] = identity_of(message)


def send_ends(span: SpanContext) -> None:
    """The send is over, whatever goes on in its context."""
    _sends.pop(span.span_id, None)


def sent_by(span: SpanContext) -> object:
    """What `span` sends: the identity of the message; None where it is no send, or over."""
    return _sends.get(span.span_id)


def identity_of(message: Any) -> object:
    """The same for a message and its copies, where it says."""
    message_id = getattr(message, "message_id", None)
    return id(message) if message_id is None else message_id
