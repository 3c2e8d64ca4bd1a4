"""The one place where our own failures end: logged at a bounded rate, never raised into the program."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from amptalk_otel._forks import lock_of

logger = logging.getLogger("amptalk_otel")

_QUIET_S = 60.0
_lock = lock_of(sys.modules[__name__], threading.Lock)
_quiet_until: dict[str, float] = {}
_strict = False


def set_strict(*, strict: bool) -> bool:
    """Re-raise swallowed failures (for test suites); returns the former setting."""
    global _strict
    former, _strict = _strict, strict
    return former


def swallow(where: str) -> None:
    """Log the exception being handled, at most once a minute for each `where`. Call it in an except block.

    The record names the class of the exception and the line that raised it, never its text, which may
    quote a payload.
    """
    error = sys.exc_info()[1]
    if error is None:
        return
    if _strict:
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
    complain(where, "%s was skipped (%s at %s); the program is not affected", where, type(error).__qualname__, place)


def guarded(where: str, act: Callable[..., Any], *args: Any) -> Any:
    """`act(*args)`, or None where it fails."""
    try:
        return act(*args)
    except Exception:
        swallow(where)
        return None


def complain(key: str, message: str, *arguments: object) -> None:
    """Log a warning, at most once a minute for each `key`."""
    now = time.monotonic()
    with _lock:
        if now < _quiet_until.get(key, 0.0):
            return
        if len(_quiet_until) > 1000:
            _quiet_until.clear()
        _quiet_until[key] = now + _QUIET_S
    with contextlib.suppress(Exception):  # a handler of the program's that raises, where we must not
        logger.warning(message, *arguments)


def forget_complaints() -> None:
    """Let every complaint be heard again at once (for test suites)."""
    with _lock:
        _quiet_until.clear()
