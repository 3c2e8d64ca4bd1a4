"""How spans end: what they tell of errors, and which context is current afterwards."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.trace import Span, Status, StatusCode

from amptalk_otel._labels import error_type_of

_MOST_FRAMES = 50  # the innermost


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
