"""What the hot path writes of an agent's messages. Plain numbers, no OpenTelemetry.

A recorder has one writer, the thread whose loop runs the agent, and takes no lock; any thread may read it
(see `_reading`). An agent that moves from one loop to another is right as long as the loops do not run it at the
same time, which `asyncio.Queue` does not allow either. This holds with and without the GIL.

As little as possible is written for each message. What a message type received is counted; which of these left
the inbox, and which were finished, is what their histograms count anyway. The rest is subtraction:

    left = waits observed + left without a known wait
    queued = received - left
    taken = left - taken by others - unregistered
    finished = processing times observed + lost + cancelled
    in flight = taken - finished
    processed = processing times observed - failures with a processing time

so that received = processed + failed + dropped + in flight + queued, whenever it is read. Whether that is so is
checked against what does not follow from these counts: the length of the inbox itself, and the messages that the
recorder holds a place for (`in_hand`). What they do not agree on is unaccounted for.

What becomes of messages that were taken, and where the time goes, is written by `_work_recorder`, a part of it.
`_hooks` has the steps of both written out for a message that goes the usual way; the methods here take all ways.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from time import perf_counter
from typing import Any

from amptalk_otel._labels import OTHER, count_in, message_of, message_type_of
from amptalk_otel._names import Names
from amptalk_otel._payload import payload_size
from amptalk_otel._peaks import LONG_AGO, NO_PEAKS, SLOT_S, Peaks, highest, moved_on
from amptalk_otel._type_recorder import NEVER, TAKEN, UNREGISTERED, TypeRecorder, in_flight_of, queued_of
from amptalk_otel._under_way import CAREFULLY, IN_WORK, NOTHING, Flight, TaskReference
from amptalk_otel._waiting import UNKNOWN_ARRIVAL, Arrival, ByMessage, Waiting
from amptalk_otel._work_recorder import WorkRecorder


class AgentRecorder(WorkRecorder):
    """The counts of one agent. Every method but the constructor is called on the agent's own loop."""

    __slots__ = (
        "_by_name",
        "_payload_of",
        "_size_sample_every",
        "_sized",
        "_type_is_enum",
        "_type_of",
        "agent_id",
        "agent_name",
        "by_type",
        "departed_at",
        "disagreed",
        "last_read",
        "orchestrator_name",
        "peak",
        "peak_ends_at",
        "peaks",
        "started_at",
        "waiting",
    )

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
        names: Names | None = None,
    ) -> None:
        """`names`: those of its series, if others may be in it."""
        super().__init__(clock)
        if names is not None:
            self.names = names
        self.agent_id = agent_id
        self.agent_name = agent_name
        self.orchestrator_name = orchestrator_name
        self.started_at: float | None = None
        self.departed_at: float | None = None
        self.by_type: dict[object, TypeRecorder] = {}  # by the enum's value, a way round its `message.type`
        self.last_read: tuple[Any, ...] = ()  # for the readers: what they saw last, so as to know what has changed
        self.disagreed: tuple[Any, ...] = ()  # and when inbox or messages in hand did not agree with it, all of them
        self.waiting: Waiting = ByMessage()
        self.peak = 0  # the highest length of the inbox in the slot under way, at which a message left
        self.peak_ends_at = LONG_AGO  # when that slot is over
        self.peaks: Peaks = NO_PEAKS  # in those before
        self._by_name: dict[str, TypeRecorder] = {}
        self._size_sample_every = size_sample_every
        self._type_of = type_of
        self._type_is_enum = type_is_enum  # whether `type_of` tells the attribute `message_type` and nothing else
        self._payload_of = payload_of
        self._sized: Callable[[Any, int], None] | None = None  # for traces: is told whose payload was measured

    # -- inbox ---------------------------------------------------------------------------------------

    def is_there(self, item: Any) -> None:
        """`item` is in the inbox and was not seen to come: received and queued, with no known arrival."""
        message = message_of(item)
        record = self.record_of(message)
        self.waiting.remember(message, (record, UNKNOWN_ARRIVAL, None))
        record.received += 1

    def arrived(self, item: Any, sent_in: Any = None) -> None:
        """`item` was put into the inbox."""
        message = message_of(item)
        record = self.record_of(message)
        # Before `received`: a reader that sees the message counted must find when it came.
        self.waiting.remember(message, (record, self.clock(), sent_in))
        record.received += 1
        if record.received >= record.next_size_at:
            self.measure_size(record, message)

    def left(self, item: Any, taken_by: TaskReference, *, own_loop: bool) -> None:
        """`item` was taken out of the inbox; `own_loop` tells whether by the agent's loop, to be processed."""
        now = self.clock()
        message = message_of(item)
        self.was_as_long_as(len(self.waiting), now)
        record, arrived_at, sent_in = self.waiting.recall(message) or self._came_past_us(message)
        waited_s = now - arrived_at if arrived_at else None
        with self._at_once():
            if own_loop:
                self._take(message, Flight(record, now, taken_by, sent_in, waited_s))
            else:
                count_in(record, "dropped", TAKEN)
            if waited_s is None:
                record.unwaited += 1
                return
            record.wait.record(waited_s)
        if not (own_loop and self.tells_waits_late):
            self.tell_wait(record, waited_s)

    def _came_past_us(self, message: Any) -> Arrival:
        record = self.record_of(message)
        record.received += 1
        return record, UNKNOWN_ARRIVAL, None

    def vanished(self, number: int) -> None:
        """The `number` oldest messages of the inbox were removed behind our back."""
        for _ in range(number):
            arrival = self.waiting.recall(None)
            if arrival is not None:
                with self._at_once():
                    count_in(arrival[0], "dropped", TAKEN)
                    arrival[0].unwaited += 1

    def was_as_long_as(self, length: int, now: float) -> None:
        """The inbox had `length` messages until now, when one leaves."""
        if now >= self.peak_ends_at:
            self.begin_peak(now)
        self.peak = max(self.peak, length)

    def begin_peak(self, now: float) -> None:
        """The slot of the highest length is over."""
        with self._at_once():
            self.peaks = peaks = moved_on(self.peaks, self.peak, now)
            self.peak, self.peak_ends_at = 0, (peaks[0] + 1) * SLOT_S

    def peak_until(self, now: float) -> int:
        """The highest length at which a message left the inbox in the last minute."""
        return highest(self.peaks, self.peak, now)

    # -- sending -------------------------------------------------------------------------------------

    def sent(self, message: Any) -> None:
        """`message` was accepted for delivery."""
        self.record_of(message).sent += 1

    def undeliverable(self, message: Any, reason: str) -> None:
        """A send that reached no inbox: `unknown_target`, `expired` or `error`."""
        count_in(self.record_of(message), "undeliverable", reason)

    # -- traces --------------------------------------------------------------------------------------

    def trace(self, sized: Callable[[Any, int], None] | None) -> None:
        """From now on messages are traced, and `sized` is told whose payload was measured; None: not any more."""
        if self.tells_waits_late:
            flights = list(self.unstarted.values())
            if not any(self.next_message is other for other in (NOTHING, IN_WORK, CAREFULLY)):
                flights.append(self._next_flight())
            for flight in flights:
                if flight.waited_s is not None:
                    self.tell_wait(flight.record, flight.waited_s)
        for flight in self.unstarted.values():
            flight.waited_s = None
        self.next_sent_in = self.next_waited_s = None
        self.tells_waits_late = sized is not None
        self._sized = sized

    # -- leaving -------------------------------------------------------------------------------------

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """What tells the agent's series from others'."""
        return self.agent_id, self.agent_name, self.orchestrator_name

    def absorb(self, other: AgentRecorder) -> None:
        """Add what another one counted, which is told no more: what still waits there, or is in flight, is given up.

        What is in flight by its counts only, and not in hand, stays unaccounted for.
        """
        in_hand = other.in_hand
        with self._at_once():
            for record in other.records:
                mine, waiting = self._named(record.message_type), queued_of(record)
                in_flight = min(in_flight_of(record), in_hand)
                mine.absorb(record)
                if waiting > 0:
                    count_in(mine, "dropped", UNREGISTERED, waiting)
                    mine.unwaited += waiting
                if in_flight > 0:
                    count_in(mine, "failed", OTHER, in_flight)
                    mine.lost += in_flight
                    in_hand -= in_flight
            for state in other.states:
                self.state_recorder(state.storage).absorb(state)
            now = other.clock()
            self.times.absorb(other.times.read_as_it_is(now, other.spent_until(now)))

    # -- life ----------------------------------------------------------------------------------------

    def come_back(self) -> None:
        """A departed agent is watched again: its counters go on from where they stood."""
        self.departed_at = None

    def let_go(self) -> None:
        """The agent is no longer watched: what still waits in its inbox is dropped as `unregistered`."""
        self._drop_waiting(UNREGISTERED)
        self.departed_at = now = self.clock()
        self.times.stop(now, self.spent_until(now))

    def inbox_replaced(self) -> None:
        """The agent was given another inbox: what still waits in the former one is dropped as `taken`."""
        self._drop_waiting(TAKEN)

    def _drop_waiting(self, reason: str) -> None:
        self.was_as_long_as(len(self.waiting), self.clock())
        with self._at_once():
            for record in list(self.records):
                waiting = queued_of(record)
                if waiting > 0:
                    count_in(record, "dropped", reason, waiting)
                    record.unwaited += waiting
        self.waiting = ByMessage()

    # -- inside --------------------------------------------------------------------------------------

    def record_of(self, message: Any) -> TypeRecorder:
        """The counts of the message's type."""
        try:
            # `_value_` instead of `value`: the same object without the descriptor's Python-level call.
            return self.by_type[message.message_type._value_]
        except Exception:  # whatever a message raises, it is one
            return self._find_record(message_of(message))

    def forget_types(self) -> None:
        """Whoever holds the dictionary of types finds none in it from now on."""
        known, self.by_type = self.by_type, {}
        known.clear()

    def _find_record(self, message: Any) -> TypeRecorder:
        record = self._named(message_type_of(message, self._type_of))
        if record.message_type == OTHER:
            return record
        raw = getattr(getattr(message, "message_type", None), "_value_", None)
        if self._type_is_enum and isinstance(raw, (str, int)):
            self.by_type[raw] = record  # next time without the search
        return record

    def _named(self, message_type: str) -> TypeRecorder:
        """The counts of a type, or of `_OTHER` where there is no place for it."""
        record = self._by_name.get(message_type)
        if record is None:
            message_type = self.names.message_type(message_type)
            record = self._by_name.get(message_type)
        if record is None:
            first = 1 if self._size_sample_every else NEVER
            record = self._by_name[message_type] = TypeRecorder(message_type, next_size_at=first, names=self.names)
            self.records.append(record)
        return record

    def measure_size(self, record: TypeRecorder, item: Any) -> None:
        """Measure the payload of one message in so many, beginning with the first."""
        record.next_size_at = record.received + self._size_sample_every
        size_bytes = payload_size(self._payload_of(message_of(item)))
        if size_bytes is None:
            return
        record.size.record(size_bytes)
        if self._sized is not None:
            self._sized(message_of(item), size_bytes)
        for observer in self.observers:
            observer.sized(record.message_type, size_bytes)
