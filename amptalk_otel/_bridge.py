"""The catalogue as OpenTelemetry instruments, for any MeterProvider.

Counters, up-down counters and gauges are observable: their callbacks read recorders and psutil when a reader
collects, and cost nothing in between. Histograms have no observable form, so they are synchronous and told
each value as it is measured.

Several instrumentations on one provider share one bridge: instruments are created once per name and never
removed (https://opentelemetry.io/docs/specs/otel/metrics/api/), but they stop reporting when their sources go.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from amptalk_otel import _guard
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._catalogue import (
    BY_NAME,
    CATALOGUE,
    MESSAGE_SIZE,
    OPERATION_DURATION,
    PROCESS_DURATION,
    STATE_OPERATION_DURATION,
    WAIT_DURATION,
    Kind,
    Metric,
    Snapshot,
    agent_attributes,
    operation_attributes,
    samples,
    state_operation_attributes,
)
from amptalk_otel._recorder import OperationKey, OperationRecorder, Reported
from amptalk_otel._sdk_series import move_series
from amptalk_otel._sources import Bridge, Source, Sources
from amptalk_otel._system import System
from amptalk_otel._version import SCOPE_NAME, __version__

_SNAPSHOT_LASTS_S = 10.0
_MOVES_AT_ONCE = 500
_NO_TRACE = set_span_in_context(INVALID_SPAN, Context())
"""Not the current one: an agent's loop keeps the span that it was started in, which would be in every exemplar.
Not an empty one either, which the SDK takes for none."""


class InstrumentsBridge:
    """The catalogue's instruments on one MeterProvider."""

    def __init__(self, provider: MeterProvider) -> None:
        self._sources = Sources()
        self._lock = threading.Lock()
        self._collection = threading.local()
        self._system: System | None = None
        self._instruments: dict[str, Any] = {}
        self._observers: dict[int, HistogramObserver] = {}  # by id of the owner
        self._kept: set[tuple[Any, ...]] = set()  # series of those that left
        self._moves: dict[tuple[Any, ...], dict[str, str]] = {}  # of series of agents: to which attributes
        meter = provider.get_meter(SCOPE_NAME, __version__)
        for metric in CATALOGUE:
            self._instruments[metric.name] = _create(meter, metric, self._callback(metric))

    def add(self, source: Source) -> None:
        """Report what `source` reads, from the next collection on."""
        with self._lock:
            if self._system is None:
                self._system = System()
        self._sources.add(source)

    def remove(self, source: Source) -> None:
        """Stop reporting `source`."""
        self._sources.remove(source)

    def series_for(self, identity: Identity, most: int) -> Identity:
        """The series for another agent, of which at most so many have a name."""
        return self._sources.ledger.series_for(identity, most)

    def is_shared(self, identity: Identity) -> bool:
        """Whether a series goes on when one of its agents leaves."""
        return self._sources.ledger.is_shared(identity)

    def report(self, owner: Reported) -> None:
        """Let an owner's durations and sizes into this bridge's histograms, once however many ask."""
        if any(identity in self._moves for identity in _identities(owner)):
            self._make_moves()
        with self._lock:
            if self._sources.ledger.report(owner):
                self._observers[id(owner)] = observer = HistogramObserver(self._instruments, owner)
                owner.observers = (*owner.observers, observer)

    def withdraw(self, owners: Iterable[Reported]) -> None:
        """Take `report` back. The series of owners that nobody reports any more go, as far as the provider can."""
        leaving = [owner for owner in owners if self._withdraw_one(owner)]
        if not leaving:
            return
        self._make_moves()
        self._sources.ledger.forget()
        identities = {identity for owner in leaving for identity in _identities(owner)}
        identities -= {identity for owner in self._sources.ledger.owners() for identity in _identities(owner)}
        identities -= {_identity(agent_attributes(*series)) for series in self._sources.ledger.kept_series()}
        if not self._sources:
            identities |= self._kept
            self._kept = set()
        self._move(lambda attributes: {} if _identity(attributes) in identities else None)

    def retire(self, agents: Iterable[AgentRecorder]) -> list[Identity]:
        """Take `report` back, and go on telling what agents counted. Returns the series that ended."""
        ended = []
        for recorder in agents:
            with self._lock:
                into = self._sources.ledger.retire_one(recorder)
                if into is not None:
                    self._silence(recorder)
            if into is not None and into != recorder.identity:
                ended.append(recorder.identity)
                self._move_later(recorder.identity, into)
        return ended

    def _move_later(self, former: Identity, into: Identity) -> None:
        """Before the next collection, or when there are many: each time takes longer where there are more series."""
        latter = agent_attributes(*into)
        self._kept.add(_identity(latter))
        with self._lock:
            self._moves[_identity(agent_attributes(*former))] = latter
        if len(self._moves) >= _MOVES_AT_ONCE:
            self._make_moves()

    def _make_moves(self) -> None:
        with self._lock:
            moves, self._moves = self._moves, {}
        if not moves:
            return

        def moved(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
            latter = moves.get(_identity(attributes))
            return {**attributes, **latter} if latter is not None else None

        self._move(moved)

    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None:
        """The series of operations of agents that left are others from now on."""
        measured = {
            key
            for owner in self._sources.ledger.owners()
            if isinstance(owner, OperationRecorder)
            for key in owner.durations.copy()
        }
        moves = {
            _identity(operation_attributes(former)): operation_attributes(latter)
            for former, latter in operations.items()
            if former not in measured
        }
        self._kept.update(map(_identity, moves.values()))
        if moves:
            move_series(self._instruments[OPERATION_DURATION], lambda attributes: moves.get(_identity(attributes)))

    def _move(self, to: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> None:
        def forgotten(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
            return None if to(attributes) is None else {}

        for name, instrument in self._instruments.items():
            if name.startswith(("amptalk.agent.", "amptalk.state.", "amptalk.operation.")):
                is_told = BY_NAME[name].kind is Kind.HISTOGRAM  # the others are read anew at each collection
                move_series(instrument, to if is_told else forgotten)

    def _withdraw_one(self, owner: Reported) -> bool:
        with self._lock:
            is_last = self._sources.ledger.withdraw(owner)
            if is_last:
                self._silence(owner)
            return is_last

    def _silence(self, owner: Reported) -> None:
        observer = self._observers.pop(id(owner), None)
        owner.observers = tuple(other for other in owner.observers if other is not observer)

    # -- callbacks -----------------------------------------------------------------------------------

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        bridge_ref = weakref.ref(self)

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            bridge = bridge_ref()
            return bridge.observe(metric) if bridge is not None else ()

        return observe

    def observe(self, metric: Metric) -> list[Observation]:
        """The points of one instrument, for the collection under way."""
        if not self._sources or self._system is None:
            return []
        try:
            snapshot = self._snapshot(metric.name)
            return [
                Observation(value, attributes)
                for attributes, value in samples(metric, snapshot, self._system)
                if isinstance(value, (int, float))
            ]
        except Exception:
            _guard.swallow(f"reading {metric.name}")
            return []

    def _snapshot(self, reader: str) -> Snapshot:
        """The readings of the collection under way in this thread.

        All instruments of one collection must tell the same moment, or received would not be the sum of
        its parts. A collection has no name, but it calls each instrument once: whoever comes a second
        time belongs to the next one.
        """
        collection = self._collection
        readers: set[str] | None = getattr(collection, "readers", None)
        now = time.monotonic()
        if readers is None or reader in readers or now > collection.until:
            collection.snapshot = self._sources.snapshot()
            self._make_moves()  # histograms are collected after the callbacks
            collection.readers = readers = set()
            collection.until = now + _SNAPSHOT_LASTS_S
        readers.add(reader)
        snapshot: Snapshot = collection.snapshot
        return snapshot


class HistogramObserver:
    """Hands one owner's values to SDK histograms, with attribute sets built once per message type."""

    def __init__(self, instruments: Mapping[str, Any], owner: Reported) -> None:
        self._wait: Histogram = instruments[WAIT_DURATION]
        self._process: Histogram = instruments[PROCESS_DURATION]
        self._size: Histogram = instruments[MESSAGE_SIZE]
        self._state: Histogram = instruments[STATE_OPERATION_DURATION]
        self._operation: Histogram = instruments[OPERATION_DURATION]
        self._owner_attributes = _owner_attributes(owner)
        self._attributes: dict[str, dict[str, str]] = {}

    def waited(self, message_type: str, seconds: float, context: Context | None) -> None:
        self._wait.record(seconds, self._of_type(message_type), context or _NO_TRACE)

    def worked(self, message_type: str, seconds: float, context: Context | None) -> None:
        self._process.record(seconds, self._of_type(message_type), context or _NO_TRACE)

    def sized(self, message_type: str, size_bytes: int) -> None:
        self._size.record(size_bytes, self._of_type(message_type), _NO_TRACE)

    def operated(self, storage: str, operation: str, error_type: str | None, seconds: float) -> None:
        attributes = state_operation_attributes(storage, operation, error_type)
        self._state.record(seconds, {**self._owner_attributes, **attributes})

    def measured(self, key: OperationKey, seconds: float) -> None:
        self._operation.record(seconds, operation_attributes(key))

    def _of_type(self, message_type: str) -> dict[str, str]:
        try:
            return self._attributes[message_type]
        except KeyError:
            attributes = self._attributes[message_type] = {**self._owner_attributes, "message.type": message_type}
            return attributes


def _owner_attributes(owner: Reported) -> dict[str, str]:
    if isinstance(owner, AgentRecorder):
        return agent_attributes(owner.agent_id, owner.agent_name, owner.orchestrator_name)
    return {}


def _identity(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(attributes.get(key) for key in ("agent.id", "agent.name", "orchestrator.name", "operation.name"))


def _identities(owner: Reported) -> list[tuple[Any, ...]]:
    """What tells an owner's series from others'."""
    if isinstance(owner, OperationRecorder):
        return [_identity(operation_attributes(key)) for key in owner.durations.copy()]
    return [_identity(_owner_attributes(owner))]


def _create(meter: Meter, metric: Metric, callback: Callable[[CallbackOptions], Iterable[Observation]]) -> Any:
    name, unit, description = metric.name, metric.unit, metric.description
    if metric.kind is Kind.HISTOGRAM:
        return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=metric.bounds)
    if metric.kind is Kind.COUNTER:
        return meter.create_observable_counter(name, [callback], unit, description)
    if metric.kind is Kind.UP_DOWN_COUNTER:
        return meter.create_observable_up_down_counter(name, [callback], unit, description)
    return meter.create_observable_gauge(name, [callback], unit, description)


_bridges: weakref.WeakKeyDictionary[MeterProvider, Bridge] = weakref.WeakKeyDictionary()
_bridges_lock = threading.Lock()


def bridge_for(provider: MeterProvider) -> Bridge:
    """The bridge of `provider`, made at its first use."""
    with _bridges_lock:
        bridge = _bridges.get(provider)
        if bridge is None:
            bridge = _bridges[provider] = InstrumentsBridge(provider)
        return bridge


def serve(provider: MeterProvider, bridge: Bridge) -> None:
    """Let `bridge` be the one of `provider`, whose readers it reaches without instruments."""
    with _bridges_lock:
        _bridges[provider] = bridge
