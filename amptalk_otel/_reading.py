"""Consistent copies of recorders, made from any thread without stopping the writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from amptalk_otel._agent_recorder import CANCELLED, TAKEN, UNREGISTERED, AgentRecorder, TypeRecorder
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._recorder import OperationKey, OperationRecorder, OrchestratorRecorder, StateRecorder

_TRIES = 50
_PAUSE_S = 0.0002


@dataclass(frozen=True)
class TypeReading:
    """The counts of one message type at one agent, at one moment."""

    message_type: str
    received: int
    taken: int
    processed: int
    sent: int
    failed: dict[str, int]
    dropped: dict[str, int]
    undeliverable: dict[str, int]
    retries: dict[str, int]
    wait: Distribution
    process: Distribution
    size: Distribution

    @property
    def in_flight(self) -> int:
        return self.taken - self.processed - sum(self.failed.values()) - self.dropped.get(CANCELLED, 0)

    @property
    def queued(self) -> int:
        return self.received - self.taken - self.dropped.get(TAKEN, 0) - self.dropped.get(UNREGISTERED, 0)


@dataclass(frozen=True)
class StateReading:
    """What a state manager holds, and how long its operations took."""

    storage: str
    size_bytes: int | None
    items: int | None
    durations: dict[tuple[str, str | None], Distribution]


@dataclass(frozen=True)
class AgentReading:
    """One agent at one moment. `received = processed + failed + dropped + in_flight + queue_size`."""

    agent_id: str
    agent_name: str
    orchestrator_name: str | None
    running: bool
    uptime_s: float
    queue_size: int
    oldest_age_s: float | None
    types: tuple[TypeReading, ...]
    states: tuple[StateReading, ...] = field(default=())
    recorder_id: int = field(default=0, repr=False, compare=False)  # the same in two readings of one agent

    @property
    def received(self) -> int:
        return sum(reading.received for reading in self.types)

    @property
    def processed(self) -> int:
        return sum(reading.processed for reading in self.types)

    @property
    def failed(self) -> int:
        return sum(sum(reading.failed.values()) for reading in self.types)

    @property
    def dropped(self) -> int:
        return sum(sum(reading.dropped.values()) for reading in self.types)

    @property
    def in_flight(self) -> int:
        return sum(reading.in_flight for reading in self.types)

    @property
    def sent(self) -> int:
        return sum(reading.sent for reading in self.types)

    @property
    def retries(self) -> int:
        return sum(sum(reading.retries.values()) for reading in self.types)

    @property
    def undeliverable(self) -> int:
        return sum(sum(reading.undeliverable.values()) for reading in self.types)

    @property
    def wait_histogram(self) -> Distribution:
        """Time in the inbox, all message types together."""
        return _merged((reading.wait for reading in self.types), DURATION_BOUNDS_S)

    @property
    def process_histogram(self) -> Distribution:
        """Time of processing, all message types together."""
        return _merged((reading.process for reading in self.types), DURATION_BOUNDS_S)

    @property
    def size_histogram(self) -> Distribution:
        """Sampled payload sizes, all message types together."""
        return _merged((reading.size for reading in self.types), SIZE_BOUNDS_BYTES)


@dataclass(frozen=True)
class OrchestratorReading:
    """One orchestrator at one moment."""

    name: str
    running: int
    stopped: int
    routed: dict[str, int]
    undeliverable: dict[tuple[str, str], int]


@dataclass(frozen=True)
class OperationReading:
    """How long one operation of one agent took, measured by the program."""

    key: OperationKey
    duration: Distribution


def each_once(readings: Iterable[AgentReading]) -> tuple[AgentReading, ...]:
    """The readings without second ones of the same agent, which come from somebody else who watches it."""
    found: dict[int, AgentReading] = {}
    for reading in readings:
        found.setdefault(reading.recorder_id, reading)
    return tuple(found.values())


def _merged(distributions: Iterable[Distribution], bounds: tuple[float, ...]) -> Distribution:
    return sum(distributions, Distribution.empty(bounds))


def read_types(recorder: AgentRecorder, queue_size: Callable[[], int | None]) -> tuple[tuple[TypeReading, ...], int]:
    """Every type's counts and the inbox's length, all of the same moment.

    The writer is not stopped: counts are copied twice around the length of the inbox and taken when
    both copies agree with each other and with the length; otherwise the reader steps aside for a
    moment and tries again, at most 50 times (10 ms). After that it takes what it has: an inbox that
    was changed behind the hooks' back (`queue._queue.clear()`) never agrees, and its real length is told.
    """
    copies, length = _copy(recorder), queue_size()
    for _ in range(_TRIES):
        again = _copy(recorder)
        queued = sum(reading.queued for reading in again)
        if copies == again and (length is None or length == queued):
            return again, queued
        time.sleep(_PAUSE_S)
        copies, length = _copy(recorder), queue_size()
    return copies, length if length is not None else 0


def _copy(recorder: AgentRecorder) -> tuple[TypeReading, ...]:
    return tuple(_copy_type(record) for record in recorder.records.copy())


def _copy_type(record: TypeRecorder) -> TypeReading:
    return TypeReading(
        message_type=record.message_type,
        received=record.received,
        taken=record.taken,
        processed=record.processed,
        sent=record.sent,
        failed=record.failed.copy(),
        dropped=record.dropped.copy(),
        undeliverable=record.undeliverable.copy(),
        retries=record.retries.copy(),
        wait=record.wait.copy(),
        process=record.process.copy(),
        size=record.size.copy(),
    )


def oldest_age_s(recorder: AgentRecorder) -> float | None:
    """Seconds that the oldest message with a known arrival has waited; None where there is none."""
    for _ in range(_TRIES):
        try:
            first = next((arrived_at for arrived_at in recorder.arrivals.values() if arrived_at), None)
            again = [moments[0] for moments in recorder.arrived_again.values() if moments[0]]
        except RuntimeError:  # the inbox changed while we looked
            continue
        oldest = min(again, default=first) if first is None else min((first, *again))
        return None if oldest is None else max(0.0, recorder.clock() - oldest)
    return None


def read_state(recorder: StateRecorder, size_bytes: int | None = None, items: int | None = None) -> StateReading:
    """The durations, with what the manager holds; None for a manager that is gone."""
    durations = {key: buckets.copy() for key, buckets in recorder.durations.copy().items()}
    return StateReading(recorder.storage, size_bytes, items, durations)


def read_orchestrator(recorder: OrchestratorRecorder, *, running: int, stopped: int) -> OrchestratorReading:
    return OrchestratorReading(recorder.name, running, stopped, recorder.routed.copy(), recorder.undeliverable.copy())


def read_operations(recorder: OperationRecorder) -> tuple[OperationReading, ...]:
    return tuple(OperationReading(key, buckets.copy()) for key, buckets in recorder.durations.copy().items())
