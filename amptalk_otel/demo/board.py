"""What the display shows, computed from what the instrumentation reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


class Histogram(Protocol):
    """A histogram as the instrumentation reads it."""

    @property
    def count(self) -> int: ...
    def quantile(self, q: float) -> float | None: ...


class Reading(Protocol):
    """One agent as the instrumentation reads it. Counts are totals since it was instrumented."""

    @property
    def agent_id(self) -> str: ...
    @property
    def agent_name(self) -> str: ...
    @property
    def running(self) -> bool: ...
    @property
    def queue_size(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def processed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def undeliverable(self) -> int: ...
    @property
    def wait_histogram(self) -> Histogram: ...
    @property
    def process_histogram(self) -> Histogram: ...


@dataclass(frozen=True)
class Row:
    """One agent's line."""

    name: str
    running: bool
    queue: int
    in_flight: int
    received: int
    processed_per_s: float
    failed: int
    dropped: int
    retries: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    process_p50_s: float | None
    process_p95_s: float | None


@dataclass(frozen=True)
class Totals:
    """All agents together."""

    received: int
    processed: int
    failed: int
    dropped: int
    in_flight: int
    queued: int
    sent: int
    undeliverable: int
    retries: int

    @property
    def accounted_for(self) -> int:
        """Messages whose whereabouts are known; the same as `received`, or something is wrong."""
        return self.processed + self.failed + self.dropped + self.in_flight + self.queued


class RateWindow:
    """How fast totals have grown over the last seconds, per second."""

    def __init__(self, *, window_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def update(self, key: str, total: int) -> float:
        """Note a total and return its growth per second; 0 until two totals are known."""
        now_s = self._clock()
        seen = self._seen.setdefault(key, deque())
        seen.append((now_s, total))
        # The newest total that is at least a window old stays, as the start of the window.
        while len(seen) > 2 and now_s - seen[1][0] >= self._window_s:
            seen.popleft()
        first_s, first_total = seen[0]
        return (total - first_total) / (now_s - first_s) if now_s > first_s else 0.0


def make_rows(readings: Iterable[Reading], rates: RateWindow) -> list[Row]:
    """One row per agent, in the order of the readings."""
    return [_make_row(reading, rates) for reading in readings]


def _make_row(reading: Reading, rates: RateWindow) -> Row:
    wait, process = reading.wait_histogram, reading.process_histogram
    return Row(
        name=reading.agent_name,
        running=reading.running,
        queue=reading.queue_size,
        in_flight=reading.in_flight,
        received=reading.received,
        processed_per_s=rates.update(reading.agent_id, reading.processed),
        failed=reading.failed,
        dropped=reading.dropped,
        retries=reading.retries,
        wait_p50_s=wait.quantile(0.5),
        wait_p95_s=wait.quantile(0.95),
        process_p50_s=process.quantile(0.5),
        process_p95_s=process.quantile(0.95),
    )


def add_up(readings: Iterable[Reading]) -> Totals:
    readings = list(readings)
    return Totals(
        received=sum(reading.received for reading in readings),
        processed=sum(reading.processed for reading in readings),
        failed=sum(reading.failed for reading in readings),
        dropped=sum(reading.dropped for reading in readings),
        in_flight=sum(reading.in_flight for reading in readings),
        queued=sum(reading.queue_size for reading in readings),
        sent=sum(reading.sent for reading in readings),
        undeliverable=sum(reading.undeliverable for reading in readings),
        retries=sum(reading.retries for reading in readings),
    )
