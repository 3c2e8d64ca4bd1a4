"""What an agent is at: its messages from being taken to their end, and where its time goes.

Time follows from what is counted anyway: what was spent in work is the sum of the processing times, and what has
passed since the message under way was taken. Only out of the ordinary is each turn written down, see `_timesheet` and
CAREFULLY.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from amptalk_otel._guard import guarded
from amptalk_otel._labels import OTHER, count_in, error_type_of
from amptalk_otel._recorder import StateOwner
from amptalk_otel._timesheet import BLOCKED_SENDING, BUSY, IDLE, RETRY_BACKOFF, Spent, Timesheet
from amptalk_otel._type_recorder import CANCELLED, TypeRecorder
from amptalk_otel._under_way import CAREFULLY, IN_WORK, NOTHING, Flight, Retrying, TaskReference, nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_TYPE = TypeRecorder("")
_NO_SENDS: dict[int | None, int] = {}  # not to be written to


class WorkRecorder(StateOwner):
    """The part of an agent's recorder that its processing writes."""

    __slots__ = (
        "also_in_work",
        "changes",
        "clock",
        "next_message",
        "next_record",
        "next_sent_in",
        "next_taken_at",
        "next_taken_by",
        "next_waited_s",
        "records",
        "retrying",
        "sending",
        "tells_waits_late",
        "times",
        "unstarted",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.records: list[TypeRecorder] = []
        self.changes = 0  # odd while counts that belong together are being written
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

    # -- taking --------------------------------------------------------------------------------------

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

    @property
    def is_busy(self) -> bool:
        """Whether a message was taken and is not finished."""
        return self.next_message is not NOTHING or self.also_in_work > 0 or bool(self.unstarted)

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

    # -- processing ----------------------------------------------------------------------------------

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

    def tell_wait(self, record: TypeRecorder, seconds: float, context: Any = None) -> None:
        """Tell whoever wants to know of each; with the context of its trace."""
        for observer in self.observers:
            guarded("telling a wait", observer.waited, record.message_type, seconds, context)

    def tell_work(self, record: TypeRecorder, seconds: float, context: Any = None) -> None:
        """Tell whoever wants to know of each; with the context of its trace."""
        for observer in self.observers:
            guarded("telling a duration", observer.worked, record.message_type, seconds, context)

    def _end(self, message: Any, observed_s: float) -> None:
        """`message` is finished, with so much more in the processing times.

        Last of all: an agent that left may retire from now on, in another thread.
        """
        self.retrying.pop(id(message), None)
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

    # -- attempts ------------------------------------------------------------------------------------

    def attempt_failed(self, record: TypeRecorder, message: Any, error: Exception) -> None:
        """An attempt at a message in work ended in `error`."""
        retrying = self.retrying.get(id(message))
        if retrying is None:
            retrying = self.retrying[id(message)] = Retrying(record)
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

    # -- inside --------------------------------------------------------------------------------------

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Readers see all that is written inside, or nothing."""
        self.changes += 1
        try:
            yield
        finally:
            self.changes += 1
