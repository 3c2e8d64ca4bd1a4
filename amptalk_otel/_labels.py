"""Attribute values taken from messages and exceptions: always a string, never too long, never too many."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

OTHER = "_OTHER"
"""The semantic conventions' value for what has no name of its own (`error.type`)."""

RETIRED = "_RETIRED"
"""Our value for agents that left, and are not told apart any more."""

MAX_DISTINCT = 50
"""Distinct values of `message.type`, and of `error.type` on a message type, before the rest is `_OTHER`."""

MAX_LENGTH = 128
"""Characters kept of an attribute value."""


_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
"""Nobody can tell them apart on a screen, and a terminal does what they say."""


def clean(value: object) -> str:
    """`value` as an attribute: text that every exporter can encode, at most MAX_LENGTH characters, no controls.

    What becomes the same text is the same series, and is added up.
    """
    if type(value) is str and 0 < len(value) <= MAX_LENGTH and value.isascii() and value.isprintable():
        return value  # as nearly all are
    text = value if isinstance(value, str) else str(value)
    return valid(text[:MAX_LENGTH]) or OTHER


def valid(text: str) -> str:
    """`text` as every exporter can encode it."""
    return text.encode("utf-8", "replace").decode("utf-8").translate(_CONTROLS)


def message_of(item: Any) -> Any:
    """The message inside an inbox item: the item itself, or the last member of a priority queue's tuple."""
    if isinstance(item, tuple):
        for member in reversed(item):
            if hasattr(member, "message_type"):
                return member
    return item


def message_type_of(message: Any, type_of: Callable[[Any], object] = attrgetter("message_type")) -> str:
    """`message.type`: the enum's value; `_OTHER` for what is no message, or lets nobody look at it."""
    try:
        kind = type_of(message)
        return OTHER if kind is None else clean(getattr(kind, "value", kind))
    except Exception:
        return OTHER


def error_type_of(error: BaseException) -> str:
    """`error.type`: the exception's qualified class name, as OpenTelemetry's Python instrumentations write it."""
    return clean(type(error).__qualname__)


NO_COUNTS: dict[str, int] = {}
"""In place of a dictionary of counts that has none yet: most never get any. Not to be written to."""


def count_in(holder: Any, name: str, value: str, number: int = 1) -> None:
    """Add to the dictionary of counts `holder.name`, which is made at its first count.

    A value that is not there yet, and for which `holder` has no place, is `_OTHER`.
    """
    counts = getattr(holder, name)
    if counts is NO_COUNTS:
        counts = {}
        setattr(holder, name, counts)
    if value not in counts and not holder.has_place(name, value):
        value = OTHER
    counts[value] = counts.get(value, 0) + number
