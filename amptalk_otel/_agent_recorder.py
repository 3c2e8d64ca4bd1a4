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

Time is told in the same way: what was spent in work is the sum of the processing times, and what has passed since the
message under way was taken. Only out of the ordinary is each turn written down, see `_timesheet` and CAREFULLY.

`_hooks` has these steps written out for a message that goes the usual way; the methods here take all ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import contextmanager
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from amptalk_otel._labels import MAX_DISTINCT, OTHER, count_in, error_type_of, message_of, message_type_of
from amptalk_otel._payload import payload_size
from amptalk_otel._peaks import LONG_AGO, NO_PEAKS, SLOT_S, Peaks, highest, moved_on
from amptalk_otel._recorder import StateOwner
from amptalk_otel._timesheet import BLOCKED_SENDING, BUSY, IDLE, RETRY_BACKOFF, Spent, Timesheet
from amptalk_otel._type_recorder import CANCELLED, NEVER, TAKEN, UNREGISTERED, TypeRecorder, in_flight_of, queued_of
from amptalk_otel._waiting import UNKNOWN_ARRIVAL, Arrival, ByMessage, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

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


_NO_TYPE = TypeRecorder("")
_NO_SENDS: dict[int | None, int] = {}  # not to be written to


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

    __slots__ = ("attempting", "backs_off", "errors", "made", "record", "retry_count")

    def __init__(self, record: TypeRecorder, retry_count: int | None) -> None:
        self.record = record
        self.retry_count = retry_count  # what the message's metadata said before the first retry
        self.errors: list[str] = []  # error.type of each failed attempt
        self.made = 0  # retries counted
        self.attempting = False
        self.backs_off = False  # waits for the next attempt


class AgentRecorder(StateOwner):
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
        "also_in_work",
        "by_type",
        "changes",
        "clock",
        "departed_at",
        "disagreed",
        "last_read",
        "next_message",
        "next_record",
        "next_sent_in",
        "next_taken_at",
        "next_taken_by",
        "next_waited_s",
        "orchestrator_name",
        "peak",
        "peak_ends_at",
        "peaks",
        "records",
        "retrying",
        "sending",
        "started_at",
        "tells_waits_late",
        "times",
        "unstarted",
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
    ) -> None:
        super().__init__()
        self.agent_id = agent_id
        self.agent_name = agent_name
        self.orchestrator_name = orchestrator_name
        self.clock = clock
        self.started_at: float | None = None
        self.departed_at: float | None = None
        self.records: list[TypeRecorder] = []
        self.by_type: dict[object, TypeRecorder] = {}  # by the enum's value, a way round its `message.type`
        self.changes = 0  # odd while counts that belong together are being written
        self.last_read: tuple[Any, ...] = ()  # for the readers: what they saw last, so as to know what has changed
        self.disagreed: tuple[Any, ...] = ()  # and when inbox or messages in hand did not agree with it, all of them
        self.waiting: Waiting = ByMessage()
        self.peak = 0  # the highest length of the inbox in the slot under way, at which a message left
        self.peak_ends_at = LONG_AGO  # when that slot is over
        self.peaks: Peaks = NO_PEAKS  # in those before
        # The message taken last, until it is begun: nearly always the one that is begun next; then IN_WORK until it
        # is finished. An agent that works on one message at a time needs no more than this.
        self.next_message: Any = NOTHING
        self.next_record = _NO_TYPE
        self.next_taken_at = 0.0
        self.next_taken_by: TaskReference = nobody
        self.next_sent_in: Any = None
        self.next_waited_s: float | None = None
        self.tells_waits_late = False  # for traces: observers are told with the context in which a message is begun
        self.unstarted: dict[int, Flight] = {}  # those taken before it and not begun, by id of the message
        self.also_in_work = 0  # besides the one that IN_WORK stands for
        self.times = Timesheet()
        # How many sends wait for room, by id of the message that they are made for; None: for none in particular.
        self.sending: dict[int | None, int] = _NO_SENDS
        self.retrying: dict[int, Retrying] = {}  # those in work that failed once, by id of the message
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

    def tell_wait(self, record: TypeRecorder, seconds: float, context: Any = None) -> None:
        """Tell whoever wants to know of each; with the context of its trace."""
        for observer in self.observers:
            observer.waited(record.message_type, seconds, context)

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

    def _take(self, message: Any, flight: Flight) -> None:
        is_at_work = self.next_message is IN_WORK or self.next_message is CAREFULLY
        if not is_at_work and self.next_message is not NOTHING:
            self._set_aside_next()
        if id(message) in self.unstarted:  # of one that is gone: this message has its address
            self._give_up(id(message))
        if is_at_work:
            self.unstarted[id(message)] = flight
            return
        self.next_message = message
        self.next_record, self.next_taken_at, self.next_taken_by = flight.record, flight.taken_at, flight.taken_by
        self.next_sent_in, self.next_waited_s = flight.sent_in, flight.waited_s

    def _set_aside_next(self) -> None:
        """Another message was taken before the one taken last was begun."""
        self.unstarted[id(self.next_message)] = self._next_flight()

    def _next_flight(self) -> Flight:
        return Flight(self.next_record, self.next_taken_at, self.next_taken_by, self.next_sent_in, self.next_waited_s)

    # -- processing ----------------------------------------------------------------------------------

    def started(self, message: Any) -> Flight | None:
        """Processing begins; None for a message that did not come from the inbox or is being processed."""
        key = id(message)
        if self.next_message is message:
            flight = self._next_flight()
            self._give_up_lost(flight)
            self.next_message = IN_WORK
        elif key in self.unstarted:
            flight = self.unstarted[key]
            self._give_up_lost(flight)
            with self._at_once():
                del self.unstarted[key]
                now = self.clock()
                self._go_carefully(now)
                self.also_in_work += 1
                self._turn(now)
        else:
            return None
        return flight

    @property
    def in_hand(self) -> int:
        """Messages taken and not finished, by the places that are held for them and not by what was counted."""
        next_message = self.next_message
        alone = next_message is not NOTHING and next_message is not CAREFULLY
        return alone + self.also_in_work + len(self.unstarted)

    @property
    def is_in_work(self) -> bool:
        """Whether any message is being processed."""
        return self.next_message is IN_WORK or self.also_in_work > 0

    def _give_up_lost(self, current: Flight) -> None:
        """Messages that the loop took earlier and never began: it raised in between, and has moved on.

        Or they were taken by a task that has ended since: a loop before a restart, or `wait_for`'s.
        """
        loop_task = current.taken_by()
        for key, flight in list(self.unstarted.items()):
            if flight is current:
                break
            task = flight.taken_by()
            if task is None or task is loop_task or task.done():
                self._give_up(key)

    def _give_up(self, key: int) -> None:
        flight = self.unstarted.pop(key)
        record = flight.record
        if flight.waited_s is not None and self.tells_waits_late:
            self.tell_wait(record, flight.waited_s)
        with self._at_once():
            count_in(record, "failed", OTHER)
            record.lost += 1

    def processed(self, record: TypeRecorder, taken_at: float, message: Any, context: Any = None) -> float:
        """`message` was processed without an error, in the `context` of its trace. Returns for how many seconds."""
        with self._at_once():
            seconds = self.observe_work(record, taken_at, context)
            self._end(message, seconds)
        return seconds

    def failed(
        self, record: TypeRecorder, taken_at: float, message: Any, error: BaseException, context: Any = None
    ) -> float:
        """Processing ended in `error`, after as many seconds. Cancellation is a state: the message is dropped.

        A cancelled message has no processing time; its `process.duration` is not observed.
        """
        with self._at_once():
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                count_in(record, "dropped", CANCELLED)
                seconds = self.clock() - taken_at
                if self.next_message is IN_WORK:
                    self.times.add(BUSY, seconds)
                self._end(message, 0.0)
            else:
                count_in(record, "failed", error_type_of(error))
                seconds = self.observe_work(record, taken_at, context)
                self._end(message, seconds)
        return seconds

    def observe_work(self, record: TypeRecorder, taken_at: float, context: Any) -> float:
        """A message that was taken then has been worked on, in the `context` of its trace; returns the seconds."""
        seconds = self.clock() - taken_at
        record.process.record(seconds)
        self.tell_work(record, seconds, context)
        return seconds

    def tell_work(self, record: TypeRecorder, seconds: float, context: Any = None) -> None:
        """Tell whoever wants to know of each; with the context of its trace."""
        for observer in self.observers:
            observer.worked(record.message_type, seconds, context)

    def _end(self, message: Any, observed_s: float) -> None:
        """`message` is finished, with so much more in the processing times."""
        if self.retrying:
            self.end_retries(message)
        if self.next_message is CAREFULLY:
            self.also_in_work -= 1  # only their number counts
            self.times.recounted_s += observed_s
            self._turn(self.clock())
        else:
            self.next_message = NOTHING

    # -- time ----------------------------------------------------------------------------------------

    def _go_carefully(self, now: float) -> None:
        """Something out of the ordinary begins: write down each turn of the agent's time until it is over."""
        if self.next_message is CAREFULLY:
            return
        times = self.times
        if self.next_message is IN_WORK:
            self.also_in_work = 1
            times.state, times.since = BUSY, self.next_taken_at
        else:
            if self.next_message is not NOTHING:
                self._set_aside_next()
            times.state, times.since = IDLE, now
        self.next_message = CAREFULLY

    def _turn(self, now: float) -> None:
        """What the agent is at may have changed."""
        if self.next_message is not CAREFULLY:
            return
        self.times.turn(now, self._state())
        if self.also_in_work <= 0 and not self.sending:
            self.also_in_work = 0
            self.next_message = NOTHING

    def _state(self) -> int:
        halted = {key for key, retrying in self.retrying.items() if retrying.backs_off}
        halted.update(key for key in self.sending if key is not None)
        if self.also_in_work > len(halted):
            return BUSY
        if self.sending:
            return BLOCKED_SENDING
        return RETRY_BACKOFF if halted else IDLE

    def send_waits(self, message_id: int | None) -> None:
        """A send has to wait, made for the message in work of this id; None: for none in particular."""
        with self._at_once():
            now = self.clock()
            self._go_carefully(now)
            if self.sending is _NO_SENDS:
                self.sending = {}
            self.sending[message_id] = self.sending.get(message_id, 0) + 1
            self._turn(now)

    def send_goes_on(self, message_id: int | None) -> None:
        """A send that had to wait came to its end."""
        with self._at_once():
            waiting = self.sending.get(message_id, 0) - 1
            if waiting > 0:
                self.sending[message_id] = waiting
            else:
                self.sending.pop(message_id, None)
            self._turn(self.clock())

    def spent_until(self, now: float) -> Spent:
        """Seconds busy, in back-off, and blocked; `read_types` sees to it that nothing moves meanwhile."""
        worked_s = 0.0
        for record in self.records:
            worked_s += record.process.sum
        next_message = self.next_message
        if next_message is IN_WORK:
            worked_s += max(0.0, now - self.next_taken_at)
        return self.times.spent_until(now, worked_s, as_told=next_message is CAREFULLY)

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

    # -- attempts ------------------------------------------------------------------------------------

    def attempt_failed(self, record: TypeRecorder, message: Any, error: Exception) -> None:
        """An attempt at a message in work ended in `error`."""
        retrying = self.retrying.get(id(message))
        if retrying is None:
            retrying = self.retrying[id(message)] = Retrying(record, _retry_count(message))
        retrying.errors.append(error_type_of(error))
        with self._at_once():
            now = self.clock()
            self._go_carefully(now)
            retrying.backs_off = True
            self._turn(now)

    def retry(self, message: Any) -> Retrying | None:
        """One more attempt at `message`; None where none failed so far, and for an attempt within an attempt."""
        retrying = self.retrying.get(id(message))
        if retrying is None or retrying.attempting:
            return None
        self._count_retry(retrying)
        retrying.attempting = True
        with self._at_once():
            retrying.backs_off = False
            self._turn(self.clock())
        return retrying

    def _count_retry(self, retrying: Retrying) -> None:
        """By the error of the attempt before."""
        before = min(retrying.made, len(retrying.errors) - 1)
        count_in(retrying.record, "retries", retrying.errors[before])
        retrying.made += 1

    def end_retries(self, message: Any) -> None:
        """The message is finished. Counts what the framework gave to a registered error handler instead."""
        retrying = self.retrying.pop(id(message), None)
        made = _retry_count(message)
        if retrying is None or made is None or made == retrying.retry_count:
            return
        for _ in range(made - retrying.made):
            self._count_retry(retrying)

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

    @property
    def is_busy(self) -> bool:
        """Whether a message was taken and is not finished."""
        return self.next_message is not NOTHING or self.also_in_work > 0 or bool(self.unstarted)

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

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Readers see all that is written inside, or nothing."""
        self.changes += 1
        try:
            yield
        finally:
            self.changes += 1

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
        """The counts of a type, or of `_OTHER` once there are MAX_DISTINCT."""
        record = self._by_name.get(message_type)
        if record is None and len(self.records) >= MAX_DISTINCT:
            message_type = OTHER
            record = self._by_name.get(OTHER)
        if record is None:
            first = 1 if self._size_sample_every else NEVER
            record = self._by_name[message_type] = TypeRecorder(message_type, next_size_at=first)
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


def _retry_count(message: Any) -> int | None:
    made = getattr(getattr(message, "metadata", None), "retry_count", None)
    return made if isinstance(made, int) else None
