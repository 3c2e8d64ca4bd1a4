"""When the messages in an inbox arrived: the inbox's shadow, in the order in which the inbox gives them away."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from amptalk_otel._type_recorder import TypeRecorder

UNKNOWN_ARRIVAL = 0.0
"""The message was there before us, or came past us: no made-up wait time."""

Arrival = tuple[TypeRecorder, float, Any]
"""A message's type, when it arrived on the recorder's clock, and the context in which it was sent, for traces."""

_TRIES = 50


class Waiting(Protocol):
    """What waits in an inbox. Written by the thread that runs the agent."""

    def remember(self, message: Any, arrival: Arrival) -> None:
        """`message` was put into the inbox."""

    def recall(self, message: Any) -> Arrival | None:
        """`message` was taken out of the inbox; None where it was never seen to arrive."""

    def oldest(self) -> float | None:
        """The earliest known arrival; callable from any thread."""

    def __len__(self) -> int: ...


class InOrder:
    """The shadow of an `asyncio.Queue`: first in, first out. Two C calls a message."""

    __slots__ = ("arrivals",)

    def __init__(self) -> None:
        self.arrivals: deque[Arrival] = deque()

    def __len__(self) -> int:
        return len(self.arrivals)

    def remember(self, _message: Any, arrival: Arrival) -> None:
        self.arrivals.append(arrival)

    def recall(self, _message: Any) -> Arrival | None:
        return self.arrivals.popleft() if self.arrivals else None

    def oldest(self) -> float | None:
        for _ in range(_TRIES):
            try:
                # Those without a known arrival were there first, so this ends at once.
                return next((arrived_at for _record, arrived_at, _sent_in in self.arrivals if arrived_at), None)
            except RuntimeError:  # noqa: PERF203 - the inbox changed while we looked
                continue
        return None


class ByMessage:
    """The shadow of an inbox of another order, such as a priority queue. Knows messages by their identity.

    `last_first`: of one object that is there more than once, the one that came last leaves first.
    """

    __slots__ = ("_again", "_arrivals", "_last_first")

    def __init__(self, *, last_first: bool = False) -> None:
        self._last_first = last_first
        self._arrivals: dict[int, Arrival] = {}  # by id of the message
        self._again: dict[int, deque[Arrival]] = {}  # the same object, more than once in the inbox

    def __len__(self) -> int:
        return len(self._arrivals) + sum(len(more) for more in list(self._again.values()))

    def remember(self, message: Any, arrival: Arrival) -> None:
        key = id(message)
        if key in self._arrivals or key in self._again:
            self._again.setdefault(key, deque()).append(arrival)
        else:
            self._arrivals[key] = arrival

    def recall(self, message: Any) -> Arrival | None:
        key = id(message)
        if key not in self._again:
            return self._arrivals.pop(key, None)
        again = self._again[key]
        if self._last_first:
            arrival = again.pop()
        elif key in self._arrivals:
            return self._arrivals.pop(key)
        else:
            arrival = again.popleft()
        if not again:
            del self._again[key]
        return arrival

    def oldest(self) -> float | None:
        for _ in range(_TRIES):
            try:
                first = next(
                    (arrived_at for _record, arrived_at, _sent_in in self._arrivals.values() if arrived_at), None
                )
                again = [more[0][1] for more in self._again.values() if more[0][1]]
            except (RuntimeError, IndexError):  # the inbox changed while we looked
                continue
            return min(again, default=first) if first is None else min((first, *again))
        return None
