"""What is kept of a message while it is under way: from being taken out of the inbox to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from amptalk_otel._type_recorder import TypeRecorder

NOTHING = object()
"""In place of a message, where there is none; `None` may lie in an inbox."""

IN_WORK = object()
"""In place of a message that was taken and is being processed, with nothing out of the ordinary going on."""

CAREFULLY = object()
"""In place of a message, while several are in work, one of them is retried, or a send waits: no step goes the usual
way, as each may be a turn for the time sheet. `also_in_work` tells how many are in work."""

TaskReference = Callable[[], "asyncio.Task[Any] | None"]
"""A weak reference: a task that nobody else holds keeps its agent alive."""


def nobody() -> None:
    """The reference to no task."""


class Flight:
    """A message between being taken from the inbox and being begun."""

    __slots__ = ("record", "sent_in", "taken_at", "taken_by", "waited_s")

    def __init__(
        self,
        record: TypeRecorder,
        taken_at: float,
        taken_by: TaskReference,
        sent_in: Any = None,
        waited_s: float | None = None,
    ) -> None:
        self.record = record
        self.taken_at = taken_at
        self.taken_by = taken_by
        self.sent_in = sent_in  # for traces, as it came with the arrival
        self.waited_s = waited_s


class Retrying:
    """A message in work of which an attempt failed."""

    __slots__ = ("attempting", "backs_off", "errors", "made", "record")

    def __init__(self, record: TypeRecorder) -> None:
        self.record = record
        self.errors: list[str] = []  # error.type of each failed attempt
        self.made = 0  # retries counted
        self.attempting = False
        self.backs_off = False  # waits for the next attempt
