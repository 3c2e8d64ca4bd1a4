"""How the processing of a message is related to its sending: as a child, by a link, or both."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.trace import INVALID_SPAN, Link, SpanContext

_ANSWERED = create_key("amptalk_otel.answered")


def answered(context: Context) -> int:
    """The trace in which the message was sent that `context` works on, where that is another one; else 0."""
    trace_id = get_value(_ANSWERED, context)
    return trace_id if isinstance(trace_id, int) else 0


class Relation(Enum):
    """The setting `AMPTALK_OTEL_TRACE_RELATION`.

    https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/#trace-structure: links are the
    conventions' default; the creation context as parent is allowed where it is documented.
    """

    PARENT = "parent"
    """One trace for a whole conversation."""

    LINK = "link"
    """One trace for each message, linked to the one in which it was sent."""

    BOTH = "both"
    """A child that is linked to its parent as well, for backends that show links only."""

    def origin(self, sent_in: Context, sender: SpanContext) -> tuple[Context, Sequence[Link]]:
        """The context to start a processing span in, and its links. Baggage goes on in any case.

        `sender`: the span of `sent_in`.
        """
        if self is Relation.PARENT or not sender.is_valid:
            return sent_in, ()
        if self is Relation.LINK:
            sent_in = set_value(_ANSWERED, sender.trace_id, trace.set_span_in_context(INVALID_SPAN, sent_in))
        return sent_in, [Link(sender)]
