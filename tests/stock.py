"""The page as the stock exporter makes it of the same readings: what ours is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import export
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from amptalk_otel._buckets import Distribution
from amptalk_otel._catalogue import CATALOGUE, Kind, Metric, Snapshot, samples
from amptalk_otel._system import System
from amptalk_otel._version import SCOPE_NAME, __version__

CUMULATIVE = export.AggregationTemporality.CUMULATIVE
generate_openmetrics: Any = openmetrics_exposition.generate_latest  # untyped


def stock_page(
    snapshot: Snapshot,
    system: System,
    *,
    openmetrics: bool,
    scope_labels: bool = False,
    resource_attributes: Mapping[str, Any],
) -> str:
    metrics = [metric for row in CATALOGUE for metric in _metrics(row, snapshot, system)]
    scope = export.ScopeMetrics(InstrumentationScope(SCOPE_NAME, __version__), metrics, "")
    resource = export.ResourceMetrics(Resource(resource_attributes), [scope], "")
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=scope_labels)
    data: Any = export.MetricsData([resource]) if metrics else None  # the SDK says nothing where there is nothing
    reader._set_collect_callback(lambda _reader, **_options: data)
    encode = generate_openmetrics if openmetrics else generate_latest
    page: bytes = encode(registry)
    return page.decode()


def _metrics(row: Metric, snapshot: Snapshot, system: System) -> Iterator[export.Metric]:
    points: list[Any] = []
    for attributes, value in samples(row, snapshot, system):
        if isinstance(value, Distribution):
            counts, bounds = value.counts, value.bounds
            point = export.HistogramDataPoint(attributes, 0, 0, value.count, value.sum, counts, bounds, 0.0, 0.0)
            points.append(point)
        else:
            points.append(export.NumberDataPoint(attributes, 0, 0, value))
    if points:
        yield export.Metric(row.name, row.description, row.unit, _data(row.kind, points))


def _data(kind: Kind, points: list[Any]) -> Any:
    if kind is Kind.HISTOGRAM:
        return export.Histogram(points, CUMULATIVE)
    if kind is Kind.GAUGE:
        return export.Gauge(points)
    return export.Sum(points, CUMULATIVE, is_monotonic=kind is Kind.COUNTER)
