"""What the hot path writes of an agent's messages. Plain numbers, no OpenTelemetry.

A recorder is written by one thread, the one whose loop runs the agent, and takes no lock. Any thread may
read it (see `_reading`). A message is counted in exactly one step at each turn of its way, so that

    received = processed + failed + dropped + in flight + queued

is a matter of subtraction: in flight = taken - (processed + failed + cancelled), queued = received - (taken
+ removed otherwise).
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from time import perf_counter
from typing import Any

from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, BucketCounts
from amptalk_otel._labels import MAX_DISTINCT, OTHER, count, error_type_of, message_of, message_type_of
from amptalk_otel._payload import payload_size
from amptalk_otel._recorder import StateOwner

CANCELLED = "cancelled"
UNREGISTERED = "unregistered"
TAKEN = "taken"

_UNKNOWN_ARRIVAL = 0.0  # the message was waiting before we came: no made-up wait time


class TypeRecorder:
    """The counts of one message type at one agent."""

    __slots__ = (
        "dropped",
        "failed",
        "message_type",
        "process",
        "processed",
        "received",
        "retries",
        "sent",
        "size",
        "taken",
        "undeliverable",
        "wait",
    )

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type
        self.received = 0
        self.taken = 0  # by the agent's own loop
        self.processed = 0
        self.sent = 0
        self.failed: dict[str, int] = {}  # by error.type
        self.dropped: dict[str, int] = {}  # by reason
        self.undeliverable: dict[str, int] = {}  # by reason
        self.retries: dict[str, int] = {}  # by error.type
        self.wait = BucketCounts(DURATION_BOUNDS_S)
        self.process = BucketCounts(DURATION_BOUNDS_S)
        self.size = BucketCounts(SIZE_BOUNDS_BYTES)


class Flight:
    """One message between being taken from the inbox and being finished."""

    __slots__ = (
        "attempting",
        "attempts",
        "error_type",
        "record",
        "retry_count",
        "started",
        "taken_at",
        "taken_by",
        "worker_id",
    )

    def __init__(self, record: TypeRecorder, taken_at: float, task: asyncio.Task[Any] | None) -> None:
        self.record = record
        self.taken_at = taken_at
        # Weakly: a task that nobody else holds keeps its agent alive.
        self.taken_by = weakref.ref(task) if task is not None else _nobody
        self.started = False
        self.worker_id = 0  # id of the task that processes it; alive as long as it does
        self.attempts = 0
        self.attempting = False
        self.error_type: str | None = None  # of the last failed attempt
        self.retry_count: int | None = None  # what the message's metadata said before the first retry


def _nobody() -> None:
    return None


class AgentRecorder(StateOwner):
    """The counts of one agent. Every method but the constructor is called on the agent's own loop."""

    def __init__(
        self,
        agent_id: str,
        agent_name: str,
        *,
        orchestrator_name: str | None = None,
        size_sample_every: int = 100,
        type_of: Callable[[Any], object] = attrgetter("message_type"),
        type_is_enum: bool = True,
        payload_of: Callable[[Any], Any] = attrgetter("payload"),
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        super().__init__()
        self.agent_id = agent_id
        self.agent_name = agent_name
        self.orchestrator_name = orchestrator_name
        self.started_at: float | None = None
        self.departed_at: float | None = None
        self.records: list[TypeRecorder] = []
        self.arrivals: dict[int, float] = {}  # id of the waiting message -> when; the oldest first
        self.arrived_again: dict[int, deque[float]] = {}  # the same object, more than once in the inbox
        self._by_name: dict[str, TypeRecorder] = {}
        self._by_type: dict[object, TypeRecorder] = {}  # by the enum's value, a way round its `message.type`
        self._flights: dict[int, Flight] = {}  # id of the message -> flight
        self._unstarted = 0
        self._size_sample_every = size_sample_every
        self._type_of = type_of
        self._type_is_enum = type_is_enum  # whether `type_of` tells the attribute `message_type` and nothing else
        self._payload_of = payload_of
        self.clock = clock

    # -- inbox ---------------------------------------------------------------------------------------

    def waiting(self, item: Any) -> None:
        """`item` was in the inbox before we came: received and queued, with no known arrival."""
        self._record_of(item).received += 1
        self._remember_arrival(id(message_of(item)), _UNKNOWN_ARRIVAL)

    def arrived(self, item: Any) -> None:
        """`item` was put into the inbox."""
        if item.__class__ is tuple:
            item = message_of(item)
        record = self._record_of(item)
        key = id(item)
        # Before `received`: a reader that sees the message counted must find when it came.
        if key in self.arrivals or self.arrived_again:
            self._remember_arrival(key, self.clock())
        else:
            self.arrivals[key] = self.clock()
        record.received += 1
        every = self._size_sample_every
        if every and (record.received - 1) % every == 0:
            self._measure_size(record, item)

    def left(self, item: Any, task: asyncio.Task[Any] | None, *, own_loop: bool) -> None:
        """`item` was taken out of the inbox by `task`; `own_loop` tells whether that is the agent's loop."""
        now = self.clock()
        message = message_of(item) if isinstance(item, tuple) else item
        record = self._record_of(message)
        arrived_at = self.arrivals.pop(id(message), None)
        if arrived_at is None:
            arrived_at = self._next_arrival(id(message))
        if not own_loop or (self._flights and self._busy_with(task)):
            count(record.dropped, TAKEN)
        else:
            if self._unstarted:
                self._give_up_namesake(id(message))
            self._flights[id(message)] = Flight(record, now, task)
            self._unstarted += 1
            record.taken += 1
        if arrived_at:
            seconds = now - arrived_at
            record.wait.record(seconds)
            for observer in self.observers:
                observer.waited(record.message_type, seconds)

    def _busy_with(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a handler running in `task` drains its own inbox: that message never reaches the loop."""
        return any(flight.started and flight.worker_id == id(task) for flight in list(self._flights.values()))

    # -- processing ----------------------------------------------------------------------------------

    def started(self, message: Any) -> Flight | None:
        """Processing begins; None for a message that did not come from the inbox or is being processed."""
        flight = self._flights.get(id(message))
        if flight is None or flight.started:
            return None
        flight.started = True
        flight.worker_id = id(current_task())
        self._unstarted -= 1
        if self._unstarted:
            self._give_up_lost(flight)
        return flight

    def _give_up_lost(self, current: Flight) -> None:
        """Messages that the loop took earlier and never began: it raised in between, and has moved on.

        Or they were taken by a task that has ended since: a loop before a restart, or `wait_for`'s.
        """
        loop_task = current.taken_by()
        for key, flight in list(self._flights.items()):
            if flight is current:
                break
            task = flight.taken_by()
            if not flight.started and (task is None or task is loop_task or task.done()):
                self._give_up(key, flight)

    def _give_up_namesake(self, key: int) -> None:
        """A message that was never begun and is gone: another one has its address now."""
        flight = self._flights.get(key)
        if flight is not None and not flight.started:
            self._give_up(key, flight)

    def _give_up(self, key: int, flight: Flight) -> None:
        del self._flights[key]
        self._unstarted -= 1
        count(flight.record.failed, OTHER)

    def processed(self, flight: Flight, message: Any) -> None:
        ended_at = self.clock()
        self._land(flight, message)
        flight.record.processed += 1
        self._observe_work(flight.record, ended_at - flight.taken_at)

    def failed(self, flight: Flight, message: Any, error: BaseException) -> None:
        """Processing ended in `error`. Cancellation is a state, not an error: the message is dropped.

        A cancelled message has no processing time; its `process.duration` is not observed.
        """
        ended_at = self.clock()
        self._land(flight, message)
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            count(flight.record.dropped, CANCELLED)
        else:
            count(flight.record.failed, error_type_of(error))
            self._observe_work(flight.record, ended_at - flight.taken_at)

    def _land(self, flight: Flight, message: Any) -> None:
        if self._flights.get(id(message)) is flight:
            del self._flights[id(message)]
        if flight.error_type is not None:
            self._count_unseen_retries(flight, message)

    def _observe_work(self, record: TypeRecorder, seconds: float) -> None:
        record.process.record(seconds)
        for observer in self.observers:
            observer.worked(record.message_type, seconds)

    # -- attempts ------------------------------------------------------------------------------------

    def attempt(self, message: Any) -> Flight | None:
        """One more attempt at `message`; every one after the first is a retry. None for a direct call."""
        flight = self._flights.get(id(message))
        if flight is None or not flight.started or flight.attempting:
            return None
        if flight.attempts:
            count(flight.record.retries, flight.error_type or OTHER)
        flight.attempts += 1
        flight.attempting = True
        return flight

    def attempt_failed(self, flight: Flight, message: Any, error: Exception) -> None:
        if flight.error_type is None:
            flight.retry_count = _retry_count(message)
        flight.error_type = error_type_of(error)

    def _count_unseen_retries(self, flight: Flight, message: Any) -> None:
        """Retries that the framework gave to a registered error handler instead of `process_message`."""
        made = _retry_count(message)
        if made is None or made == flight.retry_count:
            return
        for _ in range(made - (flight.attempts - 1)):
            count(flight.record.retries, flight.error_type or OTHER)

    # -- sending -------------------------------------------------------------------------------------

    def sent(self, message: Any) -> None:
        self._record_of(message).sent += 1

    def undeliverable(self, message: Any, reason: str) -> None:
        """A send that reached no inbox: `unknown_target`, `expired` or `error`."""
        count(self._record_of(message).undeliverable, reason)

    # -- life ----------------------------------------------------------------------------------------

    def come_back(self) -> None:
        """A departed agent is watched again: its counters go on from where they stood."""
        self.departed_at = None

    def let_go(self) -> None:
        """The agent is no longer watched: what still waits in its inbox is dropped as `unregistered`."""
        self._drop_waiting(UNREGISTERED)
        self.departed_at = self.clock()

    def inbox_replaced(self) -> None:
        """The agent was given another inbox: what still waits in the former one is dropped as `taken`."""
        self._drop_waiting(TAKEN)

    def _drop_waiting(self, reason: str) -> None:
        for record in list(self.records):
            waiting = queued_of(record)
            if waiting > 0:
                record.dropped[reason] = record.dropped.get(reason, 0) + waiting
        self.arrivals.clear()
        self.arrived_again.clear()

    # -- inside --------------------------------------------------------------------------------------

    def _record_of(self, item: Any) -> TypeRecorder:
        try:
            # `_value_` instead of `value`: the same object without the descriptor's Python-level call.
            return self._by_type[item.message_type._value_]
        except (AttributeError, KeyError, TypeError):
            return self._find_record(message_of(item))

    def _find_record(self, message: Any) -> TypeRecorder:
        message_type = message_type_of(message, self._type_of)
        record = self._by_name.get(message_type)
        if record is None and len(self.records) >= MAX_DISTINCT:
            message_type = OTHER
            record = self._by_name.get(OTHER)
        if record is None:
            record = self._by_name[message_type] = TypeRecorder(message_type)
            self.records.append(record)
        if message_type == OTHER:
            return record
        raw = getattr(getattr(message, "message_type", None), "_value_", None)
        if self._type_is_enum and isinstance(raw, (str, int)):
            self._by_type[raw] = record  # next time without the search
        return record

    def _remember_arrival(self, key: int, arrived_at: float) -> None:
        if key in self.arrivals or key in self.arrived_again:
            self.arrived_again.setdefault(key, deque()).append(arrived_at)
        else:
            self.arrivals[key] = arrived_at

    def _next_arrival(self, key: int) -> float:
        again = self.arrived_again.get(key)
        if again is None:
            return _UNKNOWN_ARRIVAL
        arrived_at = again[0]
        if len(again) == 1:
            del self.arrived_again[key]
        else:
            again.popleft()
        return arrived_at

    def _measure_size(self, record: TypeRecorder, item: Any) -> None:
        size_bytes = payload_size(self._payload_of(message_of(item)))
        if size_bytes is None:
            return
        record.size.record(size_bytes)
        for observer in self.observers:
            observer.sized(record.message_type, size_bytes)


def queued_of(record: TypeRecorder) -> int:
    """Messages of this type in the inbox, by subtraction."""
    return record.received - record.taken - record.dropped.get(TAKEN, 0) - record.dropped.get(UNREGISTERED, 0)


def current_task() -> asyncio.Task[Any] | None:
    """The task under way; None where no loop runs, or a callback."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _retry_count(message: Any) -> int | None:
    made = getattr(getattr(message, "metadata", None), "retry_count", None)
    return made if isinstance(made, int) else None
