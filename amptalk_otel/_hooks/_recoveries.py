"""Error handlers: functions that an agent calls for another attempt at a message, by the class of its first error."""

from __future__ import annotations

from typing import Any

from amptalk_otel._calls import Wrap
from amptalk_otel._patch import COVERED


def cover_handlers(handlers: Any, cover: Wrap) -> None:
    """Cover each of the handlers."""
    if not isinstance(handlers, dict):
        return
    for name, handler in list(handlers.items()):
        wrapper = cover(handler)
        setattr(wrapper, COVERED, handler)
        handlers[name] = wrapper


def uncover_handlers(handlers: Any) -> None:
    """Put them back. What the program has registered since stays."""
    if not isinstance(handlers, dict):
        return
    for name, handler in list(handlers.items()):
        covered = getattr(handler, COVERED, None)
        if covered is not None:
            handlers[name] = covered
