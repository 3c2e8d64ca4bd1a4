"""The context that a message carries with it, so that a receiver in another process goes on with the trace.

It lies in `metadata.checkpoint_data`, which is free form and survives every way of serialising a message. A key of its
own in the metadata would not: the framework's `from_dict` raises TypeError for keys that it does not know, also where
nobody is instrumented. The payload is not touched.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import uuid4

from opentelemetry.baggage import get_all
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import SpanContext, get_current_span

from amptalk_otel._guard import guarded

KEY = "amptalk_otel.context"
"""Where in `checkpoint_data` the carrier is: a dictionary of texts, such as `traceparent` and `baggage`."""

SENDER = "sender"
"""In the carrier: a random text for each process, by which it knows what it wrote itself from what it received."""

SPAN = "span"
"""In the carrier, where the propagators leave no `traceparent`: trace id and span id as that has them. By these we know
of which span a carrier is; what a receiver goes on with is what the propagators take out."""

MAX_FIELDS = 16
MAX_LENGTH = 16_384
"""Of a carrier that is read: what is larger is ignored. W3C's own limits are 512 characters for `tracestate` and 8,192
for `baggage` (https://www.w3.org/TR/trace-context/, https://www.w3.org/TR/baggage/)."""


_this_process = [uuid4().hex[:16]]


def _become_another() -> None:
    _this_process[0] = uuid4().hex[:16]


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_become_another)


class Carrier:
    """Puts a context into messages and takes it out, by the propagators that are configured."""

    def __init__(self, propagator: TextMapPropagator, *, is_w3c: bool = False) -> None:
        """`is_w3c`: whether it is OpenTelemetry's default, trace context and baggage."""
        self._propagator = propagator
        self._is_w3c = is_w3c

    def inject(self, message: Any, context: Context) -> None:
        """Let `message` carry `context`, in place of what it carried. One without metadata carries nothing."""
        data = _checkpoint_data(message)
        if data is None:
            return
        carrier: dict[str, str] = {}
        of = get_current_span(context).get_span_context()
        if self._is_w3c and not of.trace_state and not get_all(context):  # what there is nearly always, in a third
            if of.is_valid:
                carrier["traceparent"] = f"00-{of.trace_id:032x}-{of.span_id:016x}-{int(of.trace_flags):02x}"
        else:
            self._propagator.inject(carrier, context)
        if carrier:
            carrier[SENDER] = _this_process[0]
            if of.is_valid and "traceparent" not in carrier:
                carrier[SPAN] = _ids_of(of)
            data[KEY] = carrier
        else:
            data.pop(KEY, None)

    def extract(self, message: Any, context: Context) -> Context:
        """`context` with what `message` carries; as it is where that is nothing, malformed or too large."""
        carrier = carried_by(message)
        if carrier is None or not _is_usable(carrier):
            return context
        found: Context | None = guarded("reading the context of a message", self._propagator.extract, carrier, context)
        return found if found is not None else context


def carried_by(message: Any) -> dict[str, Any] | None:
    """The carrier of a message, unchecked; None without one."""
    data = _checkpoint_data(message)
    carrier = data.get(KEY) if data is not None else None
    return carrier if isinstance(carrier, dict) else None


def is_ours(carried: dict[str, Any]) -> bool:
    """Whether this process wrote it."""
    return carried.get(SENDER) == _this_process[0]


def is_of(trace_id: int, carried: dict[str, Any]) -> bool:
    """Whether a carrier is of this trace; False where it does not tell."""
    return _ids_in(carried)[:32] == f"{trace_id:032x}"


def names(carried: dict[str, Any], span: SpanContext) -> bool:
    """Whether a carrier is of this very span; False where it does not tell."""
    return _ids_in(carried) == _ids_of(span)


def _ids_of(span: SpanContext) -> str:
    return f"{span.trace_id:032x}-{span.span_id:016x}"


def _ids_in(carried: dict[str, Any]) -> str:
    """The ids as W3C's trace context writes them: what it carries of that, or else our own."""
    traceparent = carried.get("traceparent")
    if isinstance(traceparent, str):
        return traceparent[3:52]
    ids = carried.get(SPAN)
    return ids if isinstance(ids, str) else ""


def _checkpoint_data(message: Any) -> dict[str, Any] | None:
    try:
        data = message.metadata.checkpoint_data
    except AttributeError:
        return None
    return data if isinstance(data, dict) else None


def _is_usable(carrier: object) -> bool:
    if not isinstance(carrier, dict) or len(carrier) > MAX_FIELDS:
        return False
    if not all(isinstance(text, str) and text.isascii() for field in carrier.items() for text in field):
        return False  # propagators fail on what can't be encoded
    return sum(len(name) + len(value) for name, value in carrier.items()) <= MAX_LENGTH
