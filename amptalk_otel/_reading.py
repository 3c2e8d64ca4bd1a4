"""Consistent copies of recorders, made from any thread without stopping the writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from amptalk_otel._agent_recorder import CANCELLED, TAKEN, UNREGISTERED, AgentRecorder, TypeRecorder
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._labels import NO_COUNTS
from amptalk_otel._recorder import OperationKey, OperationRecorder, OrchestratorRecorder, StateRecorder

_TRIES = 50
_PAUSE_S = 0.0002


@dataclass(frozen=True, slots=True)
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
    unwaited: int = field(default=0, repr=False)  # left the inbox without a known wait
    lost: int = field(default=0, repr=False)  # failed without a processing time

    @property
    def in_flight(self) -> int:
        """Messages taken by the agent and not finished."""
        return self.taken - self.processed - sum(self.failed.values()) - self.dropped.get(CANCELLED, 0)

    @property
    def queued(self) -> int:
        """Messages in the inbox."""
        return self.received - self.taken - self.dropped.get(TAKEN, 0) - self.dropped.get(UNREGISTERED, 0)


@dataclass(frozen=True, slots=True)
class StateReading:
    """What a state manager holds, and how long its operations took."""

    storage: str
    size_bytes: int | None
    items: int | None
    durations: dict[tuple[str, str | None], Distribution]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class OrchestratorReading:
    """One orchestrator at one moment."""

    name: str
    running: int
    stopped: int
    routed: dict[str, int]
    undeliverable: dict[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
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

    The writer is not stopped: counts are copied, and taken when no message came, left or ended before the
    inbox's length was known, and they agree with that; otherwise the reader steps aside for a
    moment and tries again, at most 50 times (10 ms). After that it takes what it has: an inbox that was
    changed behind the hooks' back (`queue._queue.clear()`) does not agree before the agent takes its next message,
    and its real length is told.

    The reading of a type that has not changed since the last time is the same object. Costs about 2 microseconds
    for each type, and 3 more where it has changed.
    """
    for _ in range(_TRIES):
        changes = recorder.changes
        types, length = _read(recorder), queue_size()
        if _stood_still(recorder, types, changes):
            queued = sum([reading.queued for reading in types])
            if length is None or length == queued:
                return types, queued
        time.sleep(_PAUSE_S)
    types, length = _read(recorder), queue_size()
    return types, length if length is not None else 0


def _read(recorder: AgentRecorder) -> tuple[TypeReading, ...]:
    former: tuple[TypeReading, ...] = recorder.last_read
    known = len(former)
    now = tuple(
        [
            former[index] if index < known and _is_as_before(former[index], record) else _copy(record)
            for index, record in enumerate(recorder.records.copy())
        ]
    )
    recorder.last_read = now
    return now


def _is_as_before(reading: TypeReading, record: TypeRecorder) -> bool:
    """Nothing that is counted ever falls, so what is equal has not changed."""
    return (
        reading.received == record.received
        and reading.process.sum == record.process.sum
        and reading.wait.sum == record.wait.sum
        and reading.process.counts == tuple(record.process.counts)
        and reading.wait.counts == tuple(record.wait.counts)
        and reading.size.counts == tuple(record.size.counts)
        and reading.sent == record.sent
        and reading.failed == record.failed
        and reading.dropped == record.dropped
        and reading.retries == record.retries
        and reading.undeliverable == record.undeliverable
        and reading.unwaited == record.unwaited
        and reading.lost == record.lost
        and reading.message_type == record.message_type
    )


def _copy(record: TypeRecorder) -> TypeReading:
    """The counts and what follows from them; see `_agent_recorder`."""
    wait, process, size = record.wait.copy(), record.process.copy(), record.size.copy()
    failed, dropped = _copy_counts(record.failed), _copy_counts(record.dropped)
    unwaited, lost = record.unwaited, record.lost
    return TypeReading(
        message_type=record.message_type,
        received=record.received,
        taken=sum(wait.counts) + unwaited - dropped.get(TAKEN, 0) - dropped.get(UNREGISTERED, 0),
        processed=sum(process.counts) - (sum(failed.values()) - lost),
        sent=record.sent,
        failed=failed,
        dropped=dropped,
        undeliverable=_copy_counts(record.undeliverable),
        retries=_copy_counts(record.retries),
        wait=wait,
        process=process,
        size=size,
        unwaited=unwaited,
        lost=lost,
    )


def _copy_counts(counts: dict[str, int]) -> dict[str, int]:
    return counts.copy() if counts else NO_COUNTS


def _stood_still(recorder: AgentRecorder, types: tuple[TypeReading, ...], changes: int) -> bool:
    """Whether nothing was written since `changes` was read, before the counts were copied."""
    if changes % 2 or recorder.changes != changes or len(recorder.records) != len(types):
        return False
    for record, reading in zip(recorder.records, types, strict=False):
        if (
            record.received != reading.received
            or record.wait.sum != reading.wait.sum
            or record.process.sum != reading.process.sum
        ):
            return False
    return True


def oldest_age_s(recorder: AgentRecorder) -> float | None:
    """Seconds that the oldest message with a known arrival has waited; None where there is none."""
    oldest = recorder.waiting.oldest()
    return None if oldest is None else max(0.0, recorder.clock() - oldest)


def read_state(recorder: StateRecorder, size_bytes: int | None = None, items: int | None = None) -> StateReading:
    """The durations, with what the manager holds; None for a manager that is gone."""
    durations = {key: buckets.copy() for key, buckets in recorder.durations.copy().items()}
    return StateReading(recorder.storage, size_bytes, items, durations)


def read_orchestrator(recorder: OrchestratorRecorder, *, running: int, stopped: int) -> OrchestratorReading:
    return OrchestratorReading(recorder.name, running, stopped, recorder.routed.copy(), recorder.undeliverable.copy())


def read_operations(recorder: OperationRecorder) -> tuple[OperationReading, ...]:
    return tuple(OperationReading(key, buckets.copy()) for key, buckets in recorder.durations.copy().items())
