"""A send: from the call to its return, in a span of its own that the message carries on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from amptalk_otel._guard import guarded
from amptalk_otel._tracing._attributes import Description
from amptalk_otel._tracing._current import send_begins, send_ends
from amptalk_otel._tracing._ending import leave, tell_error
from amptalk_otel._tracing._tracer import MessageTracer


class Sending:
    """One send under way. Its context is current from the constructor to `end`, in this task."""

    __slots__ = ("_span", "_token", "context")

    def __init__(self, tracer: MessageTracer, description: Description, message: Any, base: Context) -> None:
        """`base`: what the send belongs to."""
        self._span = span = tracer.start_send(description, message, base)
        self.context = base if span is None else trace.set_span_in_context(span, base)
        guarded("writing the context into a message", tracer.carrier.inject, message, self.context)
        if span is not None:
            guarded("beginning a send", send_begins, span.get_span_context(), message)
        self._token: Any = contexts.attach(self.context)

    def end(self, reason: str | None = None, error: BaseException | None = None) -> None:
        """The call returned, or raised `error`. `reason`: why the message reached no inbox."""
        leave(self._token, error)
        span = self._span
        if span is None:
            return
        send_ends(span.get_span_context())
        try:
            tell_error(span, error)
            if error is None and reason is not None:
                span.set_attribute("error.type", reason)
                span.set_status(Status(StatusCode.ERROR, reason))
        finally:
            if span.is_recording():
                span.end()


async def in_span(send: Callable[[], Awaitable[Any]], begin: Callable[[], Sending], reason: Callable[[], str]) -> Any:
    """What `send` returns, in what `begin` begins. `reason` tells why, where that is False."""
    sending: Sending | None = guarded("starting a span", begin)
    if sending is None:
        return await send()
    try:
        delivered = await send()
    except BaseException as error:
        guarded("ending a span", sending.end, None, error)
        raise
    guarded("ending a span", sending.end, reason() if delivered is False else None)
    return delivered
