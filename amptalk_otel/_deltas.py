"""Cumulative metrics as differences, for an exporter that prefers them.

See https://opentelemetry.io/docs/specs/otel/metrics/data-model/#temporality and, for who prefers what,
https://opentelemetry.io/docs/specs/otel/metrics/sdk_exporters/otlp/#additional-environment-variable-configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics import Histogram, ObservableCounter, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint, Sum
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

DELTA = AggregationTemporality.DELTA

_Key = tuple[str, "frozenset[tuple[str, Any]]"]


class Deltas:
    """What was exported last of each series, and the way from there to the next. For one reader.

    Of instruments with the same numbers, counters and up-down counters would be observable, and histograms
    synchronous: that decides which preference holds for which (they differ with `lowmemory`).
    """

    def __init__(self, preferred: dict[type, AggregationTemporality]) -> None:
        self._counters = preferred.get(ObservableCounter) is DELTA
        self._up_down_counters = preferred.get(ObservableUpDownCounter) is DELTA
        self._histograms = preferred.get(Histogram) is DELTA
        self._last: dict[_Key, Any] = {}

    def convert(self, metrics: Iterable[Metric]) -> list[Metric]:
        """The metrics with those as differences that are preferred so. What is not among them is forgotten."""
        last, self._last = self._last, {}
        converted = (self._converted(metric, last) if self._concerns(metric) else metric for metric in metrics)
        return [metric for metric in converted if metric.data.data_points]

    def _concerns(self, metric: Metric) -> bool:
        data = metric.data
        if isinstance(data, Sum):
            return self._counters if data.is_monotonic else self._up_down_counters
        return isinstance(data, HistogramData) and self._histograms

    def _converted(self, metric: Metric, last: dict[_Key, Any]) -> Metric:
        data: Any = metric.data
        points = []
        for point in data.data_points:
            key = (metric.name, frozenset((point.attributes or {}).items()))
            points.append(_since(point, last.get(key)))
            self._last[key] = point
        if isinstance(data, HistogramData):  # nothing new, nothing told: as the SDK does
            points = [point for point in points if point.count]
        return replace(metric, data=replace(data, data_points=points, aggregation_temporality=DELTA))


def _since(point: Any, former: Any) -> Any:
    """What came after `former`. A series with another start began anew: all of it did."""
    if former is None or former.start_time_unix_nano != point.start_time_unix_nano:
        return point
    start_ns = former.time_unix_nano
    if isinstance(point, NumberDataPoint):
        return replace(point, start_time_unix_nano=start_ns, value=point.value - former.value)
    return _histogram_since(point, former, start_ns)


def _histogram_since(point: HistogramDataPoint, former: HistogramDataPoint, start_ns: int) -> HistogramDataPoint:
    counts = tuple(now - then for now, then in zip(point.bucket_counts, former.bucket_counts, strict=True))
    return replace(
        point,
        start_time_unix_nano=start_ns,
        count=point.count - former.count,
        sum=point.sum - former.sum,
        bucket_counts=counts,
    )
