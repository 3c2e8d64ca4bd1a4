"""Callers of shared runs, as a test sees them."""

from __future__ import annotations

import time
from typing import Any

from amptalk_otel._turns import Turns

TIMEOUT_S = 20.0


def wait_until_waiting(turns: Turns[Any], number: int) -> None:
    """Until the next run has so many callers: one who leads it, and others who wait for its future."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        coming: Any = turns._next
        if coming is not None and len(coming._condition._waiters) >= number - 1:
            return
        time.sleep(0.001)
    raise AssertionError("they do not wait")
