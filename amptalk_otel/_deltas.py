"""Cumulative metrics as differences, for an exporter that prefers them.

See https://opentelemetry.io/docs/specs/otel/metrics/data-model/#temporality and, for who prefers what,
https://opentelemetry.io/docs/specs/otel/metrics/sdk_exporters/otlp/#additional-environment-variable-configuration.

Who gets differences adds up all that were told. So those of `_RETIRED` are without what was told before, in the series
of the agents that left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations
from typing import Any

from opentelemetry.sdk.metrics import Histogram, ObservableCounter, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, Metric, NumberDataPoint, Sum
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

from amptalk_otel._labels import OTHER, RETIRED

DELTA = AggregationTemporality.DELTA

_Key = frozenset["tuple[str, Any]"]
_Points = dict[_Key, Any]

_OWNER = ("agent.id", "agent.name", "orchestrator.name", "operation.name")
_FOLDED = ("error.type", "reason", "operation.name", "message.type")


class Deltas:
    """What was exported last of each series, and the way from there to the next. For one reader.

    Of instruments with the same numbers, counters and up-down counters would be observable, and histograms
    synchronous: that decides which preference holds for which (they differ with `lowmemory`).
    """

    def __init__(self, preferred: dict[type, AggregationTemporality]) -> None:
        self._counters = preferred.get(ObservableCounter) is DELTA
        self._up_down_counters = preferred.get(ObservableUpDownCounter) is DELTA
        self._histograms = preferred.get(Histogram) is DELTA
        self._last: dict[str, _Points] = {}  # by name of the metric

    def convert(self, metrics: Iterable[Metric], retired: Iterable[Mapping[str, Any]] = ()) -> list[Metric]:
        """The metrics with those as differences that are preferred so. What is not among them is forgotten.

        `retired`: the attributes of those whose series ended since, and go on in `_RETIRED`.
        """
        last, self._last = self._last, {}
        owners = set(map(_owner, retired))
        converted = (
            self._converted(metric, last.get(metric.name, {}), owners) if self._concerns(metric) else metric
            for metric in metrics
        )  # fmt: skip
        return [metric for metric in converted if metric.data.data_points]

    def _concerns(self, metric: Metric) -> bool:
        data = metric.data
        if isinstance(data, Sum):
            return self._counters if data.is_monotonic else self._up_down_counters
        return isinstance(data, HistogramData) and self._histograms

    def _converted(self, metric: Metric, last: _Points, retired: set[tuple[Any, ...]]) -> Metric:
        data: Any = metric.data
        now = {frozenset((point.attributes or {}).items()): point for point in data.data_points}
        self._last[metric.name] = now
        told = _told_elsewhere(now, last, retired) if retired else {}
        points = [_since(point, last.get(key), told.get(key, ())) for key, point in now.items()]
        if isinstance(data, HistogramData):  # nothing new, nothing told: as the SDK does
            points = [point for point in points if point.count]
        return replace(metric, data=replace(data, data_points=points, aggregation_temporality=DELTA))


def _since(point: Any, former: Any, told: Sequence[Any]) -> Any:
    """What came after `former`, without what was `told` in other series. One with another start began anew."""
    if former is not None and former.start_time_unix_nano == point.start_time_unix_nano:
        point = replace(_less(point, former), start_time_unix_nano=former.time_unix_nano)
    return _at_least_nothing(reduce(_less, told, point)) if told else point


def _less(point: Any, other: Any) -> Any:
    if isinstance(point, NumberDataPoint):
        return replace(point, value=point.value - other.value)
    counts = tuple(one - there for one, there in zip(point.bucket_counts, other.bucket_counts, strict=True))
    return replace(point, count=sum(counts), sum=point.sum - other.sum, bucket_counts=counts)


def _at_least_nothing(point: Any) -> Any:
    """Differences of rounded numbers may be below 0 in the last digit. Nor is it known of operations who ended them."""
    if isinstance(point, NumberDataPoint):
        return replace(point, value=max(0, point.value))
    counts = tuple(max(0, count) for count in point.bucket_counts)
    return replace(point, count=sum(counts), sum=max(0.0, point.sum), bucket_counts=counts)


# -- agents that left ----------------------------------------------------------------------------------


def _owner(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(map(attributes.get, _OWNER))


def _told_elsewhere(now: _Points, last: _Points, retired: set[tuple[Any, ...]]) -> dict[_Key, list[Any]]:
    """What was told last of those that are `retired`, by the series of now in which it is contained."""
    told = defaultdict(list)
    for former in last.values():
        if _owner(former.attributes or {}) in retired:
            heir = next((key for key in _heirs(former.attributes) if key in now), None)
            if heir is not None:
                told[heir].append(former)
    return told


def _heirs(attributes: Mapping[str, Any]) -> Iterator[_Key]:
    """The series of `_RETIRED` in which one may go on: that of the same attributes, or else where the rest is."""
    latter = {**attributes, "agent.id": RETIRED, "agent.name": RETIRED}
    if "operation.name" in attributes:
        del latter["agent.name"]
    folded = [name for name in _FOLDED if name in latter]
    for number in range(len(folded) + 1):
        for names in combinations(folded, number):
            yield frozenset({**latter, **dict.fromkeys(names, OTHER)}.items())
