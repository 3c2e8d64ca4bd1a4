"""The catalogue as OpenTelemetry instruments, for any MeterProvider.

Counters, up-down counters and gauges are observable: their callbacks read recorders and psutil when a reader
collects, and cost nothing in between. Histograms have no observable form, so they are synchronous and told
each value as it is measured.

Several instrumentations on one provider share one bridge: instruments are created once per name and never
removed (https://opentelemetry.io/docs/specs/otel/metrics/api/), but they stop reporting when their sources go.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from amptalk_otel import _guard
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._catalogue import (
    BY_NAME,
    CATALOGUE,
    OPERATION_DURATION,
    Kind,
    Metric,
    Owner,
    Snapshot,
    agent_attributes,
    operation_attributes,
    samples,
)
from amptalk_otel._forks import lock_of
from amptalk_otel._recorder import OperationKey, OperationRecorder, Reported
from amptalk_otel._sdk_histograms import Heir, HistogramObserver, identities_of, identity_of
from amptalk_otel._sdk_series import move_series
from amptalk_otel._sources import Bridge, Source, Sources
from amptalk_otel._system import System
from amptalk_otel._version import SCOPE_NAME, __version__

_SNAPSHOT_LASTS_S = 10.0
_MOVES_AT_ONCE = 500


class InstrumentsBridge:
    """The catalogue's instruments on one MeterProvider."""

    def __init__(self, provider: MeterProvider) -> None:
        self._sources = Sources()
        self._lock = lock_of(self, threading.Lock)
        self._collection = threading.local()
        self._system: System | None = None
        self._instruments: dict[str, Any] = {}
        self._observers: dict[int, HistogramObserver] = {}  # by id of the owner
        self._kept: set[tuple[Any, ...]] = set()  # series of those that left
        self._moves: dict[tuple[Any, ...], Heir] = {}  # of series of agents: in which they go on
        meter = provider.get_meter(SCOPE_NAME, __version__)
        for metric in CATALOGUE:
            self._instruments[metric.name] = _create(meter, metric, self._callback(metric))

    def add(self, source: Source) -> None:
        """Report what `source` reads, from the next collection on."""
        with self._lock:
            if self._system is None:
                self._system = System()
        self._sources.add(source)

    def remove(self, source: Source, owners: Iterable[Reported] = ()) -> None:
        """Stop reporting `source` and its `owners`.

        The series of those that nobody reports any more go, as far as the provider can.
        """
        with self._lock:
            gone = self._sources.remove(source, owners)
            for owner in gone:
                self._silence(owner)
        if gone:
            self._make_moves()
            self._forget(gone)

    def series_for(self, identity: Identity, most: int) -> Identity:
        """The series for another agent, of which at most so many have a name."""
        return self._sources.ledger.series_for(identity, most)

    def is_shared(self, identity: Identity) -> bool:
        """Whether a series goes on when one of its agents leaves."""
        return self._sources.ledger.is_shared(identity)

    def has_others(self, source: Source) -> bool:
        """Whether anything is reported besides `source`."""
        return self._sources.has_others(source)

    def report(self, owner: Reported) -> None:
        """Let an owner's durations and sizes into this bridge's histograms, once however many ask."""
        if any(identity in self._moves for identity in identities_of(owner)):
            self._make_moves()
        with self._lock:
            if self._sources.ledger.report(owner):
                self._observers[id(owner)] = observer = HistogramObserver(self._instruments, owner)
                owner.observers = (*owner.observers, observer)

    def _forget(self, gone: Iterable[Reported]) -> None:
        ledger = self._sources.ledger
        ended = {identity_of(agent_attributes(*series)) for series in ledger.forget(gone)}
        identities = {identity for owner in gone for identity in identities_of(owner)}
        identities -= {identity for owner in ledger.owners() for identity in identities_of(owner)}
        identities -= {identity_of(agent_attributes(*series)) for series in ledger.kept_series()}
        identities |= ended if self._sources else ended | self._kept
        self._kept -= identities
        self._move(lambda attributes: {} if identity_of(attributes) in identities else None)

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
        self._kept.add(identity_of(agent_attributes(*into)))
        with self._lock:
            self._moves[identity_of(agent_attributes(*former))] = Heir(into)
        if len(self._moves) >= _MOVES_AT_ONCE:
            self._make_moves()

    def _make_moves(self) -> None:
        with self._lock:
            moves, self._moves = self._moves, {}
        if not moves:
            return

        def moved(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
            heir = moves.get(identity_of(attributes))
            return heir.attributes(attributes) if heir is not None else None

        self._move(moved)

    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None:
        """The series of operations of agents that left are others from now on."""
        measured = {
            key
            for owner in self._sources.ledger.others()
            if isinstance(owner, OperationRecorder)
            for key in owner.durations.copy()
        }
        moves = {
            identity_of(operation_attributes(former)): operation_attributes(latter)
            for former, latter in operations.items()
            if former not in measured
        }
        self._kept.update(map(identity_of, moves.values()))
        if moves:
            move_series(self._instruments[OPERATION_DURATION], lambda attributes: moves.get(identity_of(attributes)))

    def _move(self, to: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> None:
        def moved(row: Metric, attributes: Mapping[str, Any]) -> dict[str, Any] | None:
            if row.owner is Owner.AGENT and "agent.id" not in attributes:
                return None  # a view leaves out the ids: all agents are one series, which goes on
            latter = to(attributes)
            # What is no histogram is read anew at each collection.
            return latter if latter is None or row.kind is Kind.HISTOGRAM else {}

        for name, instrument in self._instruments.items():
            if BY_NAME[name].owner is not Owner.PROCESS:
                move_series(instrument, partial(moved, BY_NAME[name]))

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
_bridges_lock = lock_of(sys.modules[__name__], threading.Lock, "_bridges_lock")


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
