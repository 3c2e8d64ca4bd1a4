"""Consistent copies of recorders, made from any thread without stopping the writer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._buckets import DURATION_BOUNDS_S, SIZE_BOUNDS_BYTES, Distribution
from amptalk_otel._labels import NO_COUNTS
from amptalk_otel._pace import runs_a_loop
from amptalk_otel._recorder import OperationKey, OperationRecorder, OrchestratorRecorder, StateRecorder
from amptalk_otel._timesheet import Spent, TimeReading
from amptalk_otel._type_recorder import CANCELLED, TAKEN, UNREGISTERED, TypeRecorder

_TRIES = 50
_PAUSE_S = 0.0002
_LONG_TRIES = 30
_TRIES_ON_A_LOOP = 3
_LONG_PAUSE_S = 0.003


@dataclass(slots=True, unsafe_hash=True)  # not frozen: see `Distribution`
class TypeReading:
    """The counts of one message type at one agent, at one moment."""

    message_type: str
    """The attribute `message.type`."""
    received: int
    """Messages that came into the inbox."""
    taken: int
    """Messages that the agent took from the inbox."""
    processed: int
    """Messages that were processed with success."""
    sent: int
    """Messages that the agent sent and that were accepted for delivery."""
    failed: dict[str, int]
    """Messages that failed for good, by `error.type`."""
    dropped: dict[str, int]
    """Messages that came and will never be finished, by `reason`: cancelled, unregistered or taken."""
    undeliverable: dict[str, int]
    """Messages that the agent sent and that reached no inbox, by `reason`: unknown_target, expired or error."""
    retries: dict[str, int]
    """Attempts after the first, by `error.type` of the attempt before."""
    wait: Distribution
    """Time in the inbox, in seconds."""
    process: Distribution
    """Time from being taken to success or failure, retries included, in seconds."""
    size: Distribution
    """Sampled payload sizes, in bytes."""
    stamp: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """The same object in two readings between which nothing changed; empty where nobody knows."""

    @property
    def in_flight(self) -> int:
        """Messages taken by the agent and not finished."""
        unended = self.taken - self.processed
        if unended:
            unended -= sum(self.failed.values()) + self.dropped.get(CANCELLED, 0)
        return unended

    @property
    def queued(self) -> int:
        """Messages in the inbox."""
        return self.received - self.taken - self.dropped.get(TAKEN, 0) - self.dropped.get(UNREGISTERED, 0)


@dataclass(frozen=True, slots=True)
class StateReading:
    """What a state manager holds, and how long its operations took."""

    storage: str
    """The attribute `state.storage`, such as `memory`."""
    size_bytes: int | None
    """Serialised size of the states in memory; None where it is not known."""
    items: int | None
    """How many states are in memory; None where it is not known."""
    durations: dict[tuple[str, str | None], Distribution]
    """Seconds by operation (`read`, `write` or `delete`) and `error.type`, which is None for success."""


@dataclass(slots=True, unsafe_hash=True)  # not frozen: see `Distribution`
class AgentReading:
    """One agent at one moment. `received = processed + failed + dropped + in_flight + queue_size + unaccounted`."""

    agent_id: str
    """The attribute `agent.id`."""
    agent_name: str
    """The attribute `agent.name`."""
    orchestrator_name: str | None
    """The attribute `orchestrator.name`; None without an orchestrator."""
    running: bool
    """Whether the agent takes messages."""
    uptime_s: float
    """Seconds since the agent was started; 0 while it is stopped."""
    queue_size: int
    """Messages in the inbox."""
    oldest_age_s: float | None
    """Seconds that the oldest message has waited; None for an empty inbox, for which the metric is 0."""
    types: tuple[TypeReading, ...]
    """What was counted, by message type."""
    states: tuple[StateReading, ...] = field(default=())
    """The agent's state manager, where it has one."""
    recorder_id: int = field(default=0, repr=False, compare=False)  # the same in two readings of one agent
    queue_peak: int = 0
    """The highest length of the inbox in the last minute."""
    time: TimeReading = field(default=TimeReading())
    """Where the time went since the agent is watched."""
    in_flight: int = 0
    """Messages that the agent has in hand; what each type counted adds up to the same."""
    unaccounted: int = 0
    """Messages of which nobody knows where they are: 0 if all is right.

    What was counted is compared with the inbox's own length, and with the messages in hand. Negative for messages
    that were not seen to come.
    """

    @property
    def received(self) -> int:
        """Messages that came into the inbox."""
        return sum(reading.received for reading in self.types)

    @property
    def processed(self) -> int:
        """Messages that were processed with success."""
        return sum(reading.processed for reading in self.types)

    @property
    def failed(self) -> int:
        """Messages that failed for good; `types` tells the errors."""
        return sum(sum(reading.failed.values()) for reading in self.types)

    @property
    def dropped(self) -> int:
        """Messages that came and will never be finished; `types` tells the reasons."""
        return sum(sum(reading.dropped.values()) for reading in self.types)

    @property
    def sent(self) -> int:
        """Messages that the agent sent and that were accepted for delivery."""
        return sum(reading.sent for reading in self.types)

    @property
    def retries(self) -> int:
        """Attempts after the first; `types` tells the errors."""
        return sum(sum(reading.retries.values()) for reading in self.types)

    @property
    def undeliverable(self) -> int:
        """Messages that the agent sent and that reached no inbox; `types` tells the reasons."""
        return sum(sum(reading.undeliverable.values()) for reading in self.types)

    @property
    def wait_histogram(self) -> Distribution:
        """Time in the inbox, in seconds, all message types together."""
        return _merged((reading.wait for reading in self.types), DURATION_BOUNDS_S)

    @property
    def process_histogram(self) -> Distribution:
        """Time of processing, in seconds, all message types together."""
        return _merged((reading.process for reading in self.types), DURATION_BOUNDS_S)

    @property
    def size_histogram(self) -> Distribution:
        """Sampled payload sizes, in bytes, all message types together."""
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


def _merged(distributions: Iterable[Distribution], bounds: tuple[float, ...]) -> Distribution:
    return sum(distributions, Distribution.empty(bounds))


class Moment(NamedTuple):
    """When a recorder was read, and what belongs to no message type."""

    now: float
    spent: Spent
    peak: int
    in_hand: int
    unaccounted: int = 0


def read_types(
    recorder: AgentRecorder, queue_size: Callable[[], int | None]
) -> tuple[tuple[TypeReading, ...], int, Moment]:
    """Every type's counts and the inbox's length, all of the same moment.

    The writer is not stopped: counts are copied, and taken when no message came, left or ended before the
    inbox's length was known, and they agree with that and with what is in hand; otherwise the reader steps aside for a
    moment and tries again, at most 50 times (10 ms). After that it takes what it has: an inbox that was
    changed behind the hooks' back (`queue._queue.clear()`) does not agree before the agent takes its next message,
    and its real length is told. When they are seen to disagree for the first time, the reader waits for another 90 ms:
    on a busy machine the writer may have been interrupted just then. On the thread of an event loop nothing is waited
    for: a writer of that loop can't be interrupted by its reader, and one of another loop may be, for this one reading.

    Costs about 5 microseconds for each type.
    """
    for index in range(_TRIES + _LONG_TRIES):
        changes = recorder.changes
        types, length, moment = _read(recorder), queue_size(), _moment(recorder)
        if _stood_still(recorder, types, changes):
            queued = sum([reading.queued for reading in types])
            if length in (None, queued) and moment.in_hand == sum([reading.in_flight for reading in types]):
                return types, queued, moment
        is_known = index == _TRIES and recorder.disagreed == (recorder.last_read, length, moment.in_hand)
        if is_known or not _stepped_aside(index):
            break
    types, length, moment = _read(recorder), queue_size(), _moment(recorder)
    recorder.disagreed = recorder.last_read, length, moment.in_hand
    return _told_apart(types, length, moment)


def _stepped_aside(index: int) -> bool:
    """Let the writer go on before another try; False where this has been tried often enough."""
    if runs_a_loop():
        return index < _TRIES_ON_A_LOOP
    time.sleep(_PAUSE_S if index < _TRIES else _LONG_PAUSE_S)
    return True


def _told_apart(
    types: tuple[TypeReading, ...], length: int | None, moment: Moment
) -> tuple[tuple[TypeReading, ...], int, Moment]:
    """What was read though it does not agree: by the counts, more or fewer messages wait or are in flight."""
    queued = sum([reading.queued for reading in types])
    in_flight = sum([reading.in_flight for reading in types])
    waiting = queued if length is None else length
    return types, waiting, moment._replace(unaccounted=queued - waiting + in_flight - moment.in_hand)


def _moment(recorder: AgentRecorder) -> Moment:
    now = recorder.clock()
    return Moment(now, recorder.spent_until(now), recorder.peak_until(now), recorder.in_hand)


_Stamp = tuple[Any, ...]
"""All that is counted of a type. Nothing but numbers and texts: the garbage collector does not go through such tuples,
so what is kept of many agents from one reading to the next costs no time in between."""


def _read(recorder: AgentRecorder) -> tuple[TypeReading, ...]:
    former: tuple[_Stamp, ...] = recorder.last_read
    now = [_stamp(record) for record in recorder.records.copy()]
    for index, stamp in enumerate(former):
        if index < len(now) and now[index] == stamp:
            now[index] = stamp
    recorder.last_read = tuple(now)
    return tuple([_reading(stamp) for stamp in now])


def _stamp(record: TypeRecorder) -> _Stamp:
    # Before the counts: no exemplar of a value that is not counted.
    wait_exemplars, work_exemplars = record.wait.copy_exemplars(), record.process.copy_exemplars()
    return (
        record.message_type,
        record.received,
        record.unwaited,
        record.lost,
        record.sent,
        tuple(record.failed.copy().items()) if record.failed else (),
        tuple(record.dropped.copy().items()) if record.dropped else (),
        tuple(record.undeliverable.copy().items()) if record.undeliverable else (),
        tuple(record.retries.copy().items()) if record.retries else (),
        tuple(record.wait.counts),
        record.wait.sum,
        tuple(record.process.counts),
        record.process.sum,
        tuple(record.size.counts),
        record.size.sum,
        wait_exemplars,
        work_exemplars,
    )


def _reading(stamp: _Stamp) -> TypeReading:
    """What was counted and what follows from it; see `_agent_recorder`."""
    (message_type, received, unwaited, lost, sent, failed_items, dropped_items, undeliverable, retries,
     waits, wait_s, works, work_s, sizes, size_bytes, wait_exemplars, work_exemplars) = stamp  # fmt: skip
    taken, processed = sum(waits) + unwaited, sum(works)
    failed = dropped = NO_COUNTS
    if failed_items:
        failed = dict(failed_items)
        processed -= sum(failed.values()) - lost
    if dropped_items:
        dropped = dict(dropped_items)
        taken -= dropped.get(TAKEN, 0) + dropped.get(UNREGISTERED, 0)
    return TypeReading(
        message_type,
        received,
        taken,
        processed,
        sent,
        failed,
        dropped,
        dict(undeliverable) if undeliverable else NO_COUNTS,
        dict(retries) if retries else NO_COUNTS,
        Distribution(DURATION_BOUNDS_S, waits, wait_s, wait_exemplars),
        Distribution(DURATION_BOUNDS_S, works, work_s, work_exemplars),
        Distribution(SIZE_BOUNDS_BYTES, sizes, size_bytes),
        stamp,
    )


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
