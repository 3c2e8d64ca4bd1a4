"""The catalogue as metric data, made in one pass over the recorders when a reader asks.

OpenTelemetry's specification calls this a MetricProducer
(https://opentelemetry.io/docs/specs/otel/metrics/sdk/#metricproducer). The Python SDK has none yet
(https://github.com/open-telemetry/opentelemetry-python/issues/4768), so `_readers` brings the two together. Compared
with instruments nothing happens between two collections, histograms included, and nothing is kept of agents
that left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics import Exemplar, export
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from amptalk_otel import _guard
from amptalk_otel._agent_recorder import AgentRecorder
from amptalk_otel._agents_to_read import Identity
from amptalk_otel._buckets import Distribution
from amptalk_otel._catalogue import CATALOGUE, Attributes, Kind, Metric, Owner, Snapshot, owners
from amptalk_otel._forks import lock_of
from amptalk_otel._ledger import Life
from amptalk_otel._pace import Pace
from amptalk_otel._recorder import OperationKey, Reported
from amptalk_otel._sources import Breathe, Source, Sources
from amptalk_otel._system import System
from amptalk_otel._version import SCOPE_NAME, __version__

CUMULATIVE = export.AggregationTemporality.CUMULATIVE

_UNKNOWN: Any = None
"""Recorders keep no minimum and maximum, and a gauge has no start. The SDK's data classes say `float` and `int` there;
its encoders leave the optional fields of OTLP out for None
(https://opentelemetry.io/docs/specs/otel/metrics/data-model/#histogram). Any number would be made up."""

_NO_EXEMPLARS: tuple[Any, ...] = ()


class ProducerBridge:
    """What the readers of our own pipeline produce metrics from.

    Recorders hold everything and have no observer: nothing but the count is done for a message.
    """

    def __init__(self) -> None:
        self.sources: Sources = Sources()
        self.system: System = System()

    def add(self, source: Source) -> None:
        """Report what `source` reads, from the next collection on."""
        self.sources.add(source)

    def remove(self, source: Source, owners: Iterable[Reported] = ()) -> None:
        """Stop reporting `source` and its `owners`. What is not read any more is gone, but where others are in it."""
        self.sources.ledger.forget(self.sources.remove(source, owners))

    def series_for(self, identity: Identity, most: int) -> Identity:
        """The series for another agent, of which at most so many have a name."""
        return self.sources.ledger.series_for(identity, most)

    def is_shared(self, identity: Identity) -> bool:
        """Whether a series goes on when one of its agents leaves."""
        return self.sources.ledger.is_shared(identity)

    def has_others(self, source: Source) -> bool:
        """Whether anything is reported besides `source`."""
        return self.sources.has_others(source)

    def report(self, owner: Reported) -> None:
        """`owner` counts for this bridge. No more than that: recorders are read when somebody collects."""
        self.sources.ledger.report(owner)

    def retire(self, agents: Iterable[AgentRecorder]) -> list[Identity]:
        """Take `report` back, and go on telling what agents counted. Returns the series that ended."""
        return self.sources.ledger.retire(agents)

    def move(self, operations: Mapping[OperationKey, OperationKey]) -> None:
        """Recorders are read when somebody collects. What is kept of those that left goes along."""
        self.sources.move(operations)


class _Series:
    """What stays of one series from one pass to the next."""

    __slots__ = ("attributes", "last", "start_ns")

    def __init__(self, attributes: Attributes, start_ns: int) -> None:
        self.attributes = attributes
        self.start_ns = start_ns
        self.last = 0


class _OwnerSeries:
    """The series of one agent, orchestrator, state manager or operation."""

    __slots__ = ("attributes", "recorder_id", "series")

    def __init__(self, attributes: Attributes, recorder_id: int) -> None:
        self.attributes = attributes
        self.recorder_id = recorder_id
        self.series: dict[tuple[str, ...], _Series] = {}  # by name of the metric and values of its own attributes

    @property
    def has_retired(self) -> bool:
        """Whether this is an agent, of which the ledger says so."""
        return isinstance(self.recorder_id, Life) and self.recorder_id.has_retired


_Sample = tuple[_Series, Any]
_Owners = Sequence[tuple[_OwnerSeries, Any]]  # with what is read of them


class CatalogueProducer:
    """A MetricProducer of the whole catalogue, for one reader. Everything is cumulative.

    A series starts with the pass before the one that sees it first: then it was not there, so everything that it
    counts came later. The same holds for one that begins anew, because its agent was let go and came back.
    """

    def __init__(self, bridge: ProducerBridge, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._bridge = bridge
        self._clock = clock
        self._lock = lock_of(self, threading.Lock)
        self._passed_at = clock()
        self._known: dict[tuple[Any, ...], _OwnerSeries] = {}
        self.retired: list[Attributes] = []
        """Whose series were in the pass before and have ended: what they counted is `_RETIRED`'s now."""
        self._scope = InstrumentationScope(SCOPE_NAME, __version__)

    def produce(self, timeout_millis: float = 10_000) -> list[export.ScopeMetrics]:  # noqa: ARG002 - it never waits
        """The metrics of this moment; nothing where nothing is watched."""
        with self._lock:
            now = max(self._clock(), self._passed_at)  # whoever sets the clock back, no series ends before it starts
            breathe = Pace().breathe
            metrics = self._metrics(self._bridge.sources.snapshot(breathe), now, breathe)
            self._passed_at = now
        return [export.ScopeMetrics(self._scope, metrics, "")] if metrics else []

    def _metrics(self, snapshot: Snapshot, now: int, breathe: Breathe) -> list[export.Metric]:
        former, self._known = self._known, {}
        by_owner = {owner: self._owners(owner, snapshot, former) for owner in Owner}
        ended = [(key[0], one) for key, one in former.items() if self._known.get(key) is not one]
        self.retired = [one.attributes for owner, one in ended if owner is Owner.OPERATION or one.has_retired]
        metrics = []
        for row in CATALOGUE:
            try:
                data = _data(row, self._samples(row, by_owner[row.owner], breathe), self._passed_at, now)
            except Exception:
                _guard.swallow(f"reading {row.name}")
                continue
            if data.data_points:
                metrics.append(export.Metric(row.name, row.description, row.unit, data))
        return metrics

    def _owners(self, owner: Owner, snapshot: Snapshot, former: dict[tuple[Any, ...], _OwnerSeries]) -> _Owners:
        """Who is there now, each with the series known of it."""
        found = []
        for attributes, source in owners(owner, snapshot, self._bridge.system):
            key = (owner, *attributes.values())
            recorder_id = getattr(source, "recorder_id", 0)
            known = self._known.get(key) or former.get(key)  # an agent's state managers share one
            if known is None or known.recorder_id != recorder_id:
                known = _OwnerSeries(attributes, recorder_id)
            self._known[key] = known
            found.append((known, source))
        return found

    def _samples(self, row: Metric, owners: _Owners, breathe: Breathe) -> Iterator[_Sample]:
        name = row.name
        for owner, source in owners:
            known = owner.series
            for attributes, value in row.read(source):
                key = (name, *attributes.values())
                series = known.get(key)
                if series is None:
                    together = {**owner.attributes, **attributes} if attributes else owner.attributes
                    series = known[key] = _Series(together, self._passed_at)
                yield series, value
            breathe()


def _data(
    row: Metric, samples: Iterable[_Sample], passed_at: int, now: int
) -> export.Sum | export.Gauge | export.Histogram:
    if row.kind is Kind.HISTOGRAM:
        return export.Histogram(_distributions(samples, passed_at, now), CUMULATIVE)
    if row.kind is Kind.GAUGE:
        return export.Gauge(_gauges(samples, now))
    if row.kind is Kind.UP_DOWN_COUNTER:
        return export.Sum(_sums(samples, now), CUMULATIVE, is_monotonic=False)
    return export.Sum(_counts(samples, passed_at, now), CUMULATIVE, is_monotonic=True)


def _gauges(samples: Iterable[_Sample], now: int) -> list[export.NumberDataPoint]:
    return [export.NumberDataPoint(series.attributes, _UNKNOWN, now, value, _NO_EXEMPLARS) for series, value in samples]


def _sums(samples: Iterable[_Sample], now: int) -> list[export.NumberDataPoint]:
    return [
        export.NumberDataPoint(series.attributes, series.start_ns, now, value, _NO_EXEMPLARS)
        for series, value in samples
    ]


def _counts(samples: Iterable[_Sample], passed_at: int, now: int) -> list[export.NumberDataPoint]:
    points = []
    for series, value in samples:
        if value < series.last:
            series.start_ns = passed_at
        series.last = value
        points.append(export.NumberDataPoint(series.attributes, series.start_ns, now, value, _NO_EXEMPLARS))
    return points


def _exemplars(distribution: Distribution, passed_at: int, now: int) -> Sequence[Exemplar]:
    """Those that came since the pass before, each once, as the specification has it."""
    return [
        Exemplar({}, value, time_ns, span_id, trace_id)
        for value, time_ns, trace_id, span_id in distribution.exemplars
        if passed_at < time_ns <= now
    ]


def _distributions(samples: Iterable[_Sample], passed_at: int, now: int) -> list[export.HistogramDataPoint]:
    points = []
    for series, value in samples:
        count = value.count
        if count < series.last:
            series.start_ns = passed_at
        series.last = count
        point = export.HistogramDataPoint(
            series.attributes, series.start_ns, now, count, value.sum, value.counts, value.bounds,
            _UNKNOWN, _UNKNOWN, _exemplars(value, passed_at, now) if value.exemplars else _NO_EXEMPLARS,
        )  # fmt: skip
        points.append(point)
    return points
