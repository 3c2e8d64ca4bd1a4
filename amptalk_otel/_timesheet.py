"""Where an agent's time goes. The four states add up to the time that it was running.

Nothing is written for a message that goes the usual way: its time is in the sum of the processing times, and while
it lasts it follows from when it was taken. Only what is out of the ordinary is told here, turn by turn: several
messages at once, attempts that failed, sends that wait, work that was cancelled. The rest of the running time is idle.

At each moment an agent is in one state. It is busy if any of its messages is being worked on; else blocked if a send
waits; else in back-off if a message waits for its next attempt; else idle.
"""

from __future__ import annotations

import sys
import threading
from typing import NamedTuple

from amptalk_otel._forks import lock_of

IDLE, BUSY, RETRY_BACKOFF, BLOCKED_SENDING = range(4)
"""What `Timesheet.state` may be."""

_UNSEEN, _RUNNING, _STOPPED = range(3)

_lock = lock_of(sys.modules[__name__], threading.Lock)
"""Held by readers, and by starts and stops; never while a message goes its way."""

_PER_S = 1_000_000_000

Spent = tuple[float, float, float]
"""Seconds busy, in back-off, and blocked, up to a moment."""


class TimeReading(NamedTuple):
    """Where an agent's time went since it is watched, while it was running. No part ever falls.

    Kept in whole nanoseconds: their sums are the same in any order, so that of several agents does not fall either.
    """

    idle_ns: int = 0
    busy_ns: int = 0
    retry_backoff_ns: int = 0
    blocked_sending_ns: int = 0

    @property
    def idle_s(self) -> float:
        """Seconds in which there was nothing to do."""
        return self.idle_ns / _PER_S

    @property
    def busy_s(self) -> float:
        """Seconds in which any message was being worked on."""
        return self.busy_ns / _PER_S

    @property
    def retry_backoff_s(self) -> float:
        """Seconds in which a message waited for its next attempt, and nothing else was done."""
        return self.retry_backoff_ns / _PER_S

    @property
    def blocked_sending_s(self) -> float:
        """Seconds in which a send waited, and nothing else was done."""
        return self.blocked_sending_ns / _PER_S

    @property
    def running_s(self) -> float:
        """All four together: the agent's uptime in seconds, over all its runs."""
        return sum(self) / _PER_S

    @property
    def by_state(self) -> dict[str, float]:
        """Seconds by the attribute `state`: all four, as a counter that begins at 0 misses nothing in `rate()`."""
        idle_ns, busy_ns, retry_backoff_ns, blocked_sending_ns = self
        return {
            "idle": idle_ns / _PER_S,
            "busy": busy_ns / _PER_S,
            "retry_backoff": retry_backoff_ns / _PER_S,
            "blocked_sending": blocked_sending_ns / _PER_S,
        }

    def __add__(self, other: TimeReading) -> TimeReading:  # type: ignore[override]  # not one behind the other
        return TimeReading(*[one + another for one, another in zip(self, other, strict=True)])


class Timesheet:
    """What one agent spent out of the ordinary, and its runs.

    A run begins and ends with the calls of `start` and `stop`, where these are seen. Else it is told by readings: it
    began when the agent says, if that is after we came, else with the reading that sees it first; and it lasted until
    a reading saw it for the last time.
    """

    __slots__ = ("_at", "_base", "_mode", "_ran_s", "_reported", "is_ending", "recounted_s", "since", "spent", "state")

    def __init__(self) -> None:
        # Written by the agent's thread, while readers are told to come again.
        self.spent: list[float] | tuple[float, ...] = _NOTHING  # by state, without what is in the processing times
        self.recounted_s = 0.0  # processing times of messages whose time is in `spent`
        self.state = IDLE
        self.since = 0.0  # when the state began
        # Written under the lock.
        self.is_ending = False
        self._mode = _UNSEEN
        self._at = 0.0  # when the run began; while there is none, when the next one may begin at the earliest
        self._ran_s = 0.0  # in former runs
        self._base: Spent = _NOTHING_SPENT  # while stopped: what was spent; else, what to add to what was spent
        self._reported = NO_TIME

    # -- turns ---------------------------------------------------------------------------------------

    def turn(self, now: float, state: int) -> None:
        """Up to now it was as it was; from now on it is as `state` says."""
        self.add(self.state, now - self.since)
        self.state, self.since = state, now

    def add(self, state: int, seconds: float) -> None:
        """So much was spent in `state`."""
        if seconds > 0.0:
            if not isinstance(self.spent, list):
                self.spent = list(self.spent)
            self.spent[state] += seconds

    def spent_until(self, now: float, worked_s: float, *, as_told: bool) -> Spent:
        """Seconds busy, in back-off, and blocked; `worked_s` is the sum of all processing times.

        `as_told` tells whether the state is that of the last turn.
        """
        spent = self.spent
        if as_told and now > self.since:
            spent = list(spent)
            spent[self.state] += now - self.since
        return worked_s - self.recounted_s + spent[BUSY], spent[RETRY_BACKOFF], spent[BLOCKED_SENDING]

    # -- runs ----------------------------------------------------------------------------------------

    def watch(self, now: float, spent: Spent) -> None:
        """The agent is watched from now on."""
        with _lock:
            self._thaw(spent)
            if self._mode is not _RUNNING:
                self._mode, self._at = _UNSEEN, now

    def run(self, now: float, spent: Spent) -> None:
        """The agent is started."""
        with _lock:
            if self._mode is _RUNNING:  # it was stopped in a way that is not seen
                self._end_unseen()
            self._thaw(spent)
            self._mode, self._at = _RUNNING, now

    def stop(self, now: float, spent: Spent) -> None:
        """The agent was stopped, or is let go. What it does from now on does not count."""
        with _lock:
            if self._mode is _RUNNING:
                self._ran_s += max(0.0, now - self._at)
            if self._mode is not _STOPPED:
                self._base = _added(spent, self._base)
            self._mode, self._at, self.is_ending = _STOPPED, now, False

    def _thaw(self, spent: Spent) -> None:
        if self._mode is _STOPPED:
            busy_s, backoff_s, blocked_s = spent
            self._base = _added(self._base, (-busy_s, -backoff_s, -blocked_s))

    def _begin_unseen(self, now: float, spent: Spent, started_at: float | None) -> None:
        """The agent turns out to be running, since when it says; but not since it was seen not to. Work is a proof."""
        self._thaw(spent)
        began_at = now if started_at is None or not self._at < started_at < now else started_at
        worked_before_s = sum(_added(spent, self._base)) - self._ran_s - (now - began_at)
        self._mode, self._at = _RUNNING, began_at
        self._ran_s += max(0.0, worked_before_s)

    def _end_unseen(self) -> None:
        self._ran_s = max(self._ran_s, self._reported.running_s)

    # -- reading -------------------------------------------------------------------------------------

    def read(self, now: float, spent: Spent, *, is_running: bool, started_at: float | None) -> TimeReading:
        """Where the time went up to `now`. Callable from any thread."""
        with _lock:
            if is_running and self._mode is not _RUNNING:
                self._begin_unseen(now, spent, started_at)
            elif not is_running and self._mode is _RUNNING and not self.is_ending:
                self._end_unseen()
                self._mode, self._at = _UNSEEN, now
            return self._read(now, spent)

    def read_as_it_is(self, now: float, spent: Spent) -> TimeReading:
        """The same for one who can't ask whether the agent runs: it runs if it did at the last reading."""
        with _lock:
            return self._read(now, spent)

    def _read(self, now: float, spent: Spent) -> TimeReading:
        """Spelled out: every scrape comes here for every agent, of which most are hardly ever out of the ordinary."""
        total_s, base, former = self._ran_s, self._base, self._reported
        if self._mode is _STOPPED:
            spent = base
        else:
            if base is not _NOTHING_SPENT:
                spent = _added(spent, base)
            if self._mode is _RUNNING and now > self._at:
                total_s += now - self._at
        busy_ns = int(spent[0] * _PER_S) if spent[0] > 0.0 else 0
        backoff_ns = int(spent[1] * _PER_S) if spent[1] > 0.0 else 0
        blocked_ns = int(spent[2] * _PER_S) if spent[2] > 0.0 else 0
        idle_ns = max(0, int(total_s * _PER_S) - busy_ns - backoff_ns - blocked_ns)  # who works runs, whatever it says
        told = TimeReading(idle_ns, busy_ns, backoff_ns, blocked_ns)
        if not (idle_ns >= former[0] and busy_ns >= former[1] and backoff_ns >= former[2] and blocked_ns >= former[3]):
            told = _made_good(former, told)
        self._reported = told
        return told

    def absorb(self, time: TimeReading) -> None:
        """Add where the time of another agent went. Whose sheet this is does not run, and never did.

        What was told does not fall: so there is nothing more to write.
        """
        with _lock:
            self._mode = _STOPPED
            self._reported += time


NO_TIME = TimeReading()
_NOTHING = (0.0, 0.0, 0.0, 0.0)
_NOTHING_SPENT: Spent = (0.0, 0.0, 0.0)


def _added(one: Spent, other: Spent) -> Spent:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _made_good(former: TimeReading, now: TimeReading) -> TimeReading:
    """The state of things after `former`: no part falls, and together they rise by as much as those of `now`.

    They fall where floating-point sums differ in their last digit, and where a message turns out to have been taken
    long before it was begun: its whole time is processing time. What was told too early is then made good later.
    """
    rise = sum(now) - sum(former)
    wanted = [max(0, value - before) for value, before in zip(now, former, strict=True)]
    if rise <= 0 or not any(wanted):
        return former
    together = max(rise, sum(wanted))
    return TimeReading(*[before + value * rise // together for before, value in zip(former, wanted, strict=True)])
