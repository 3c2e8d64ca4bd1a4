"""OTLP requests in which the attributes of a series are encoded once.

Most of the time of an export goes into turning the same few strings into protobuf messages again at each push.
Here that is done once per series, and the bytes are kept as long as the series is exported. Resource, scopes and
the program's own metrics are left to OpenTelemetry's encoder, and so is everything that is not as expected.

Message definitions: https://github.com/open-telemetry/opentelemetry-proto/tree/main/opentelemetry/proto/metrics/v1
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as proto
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    Sum,
)

from amptalk_otel._guard import swallow
from amptalk_otel._pace import Pace
from amptalk_otel._sources import Breathe
from amptalk_otel._version import SCOPE_NAME


class Encoder:
    """Encodes what one exporter sends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = _Constants(proto.NumberDataPoint)
        self._distributions = _Constants(proto.HistogramDataPoint)
        self._breathe: Breathe = Pace().breathe

    def encode(self, data: MetricsData) -> ExportMetricsServiceRequest:
        """The same request that OpenTelemetry's encoder makes."""
        try:
            with self._lock:
                self._numbers.begin()
                self._distributions.begin()
                self._breathe = Pace().breathe
                return self._encode(data)
        except Exception:
            swallow("encoding metrics")
            return encode_metrics(data)

    def _encode(self, data: MetricsData) -> ExportMetricsServiceRequest:
        request = encode_metrics(MetricsData([_without_ours(resource) for resource in data.resource_metrics]))
        for resource, encoded_resource in zip(data.resource_metrics, request.resource_metrics, strict=True):
            for scope, encoded in zip(resource.scope_metrics, encoded_resource.scope_metrics, strict=True):
                if _is_ours(scope):
                    for metric in scope.metrics:
                        self._add(encoded.metrics.add(), metric)
        return request

    def _add(self, encoded: proto.Metric, metric: Metric) -> None:
        data = metric.data
        encoded.name, encoded.description, encoded.unit = metric.name, metric.description or "", metric.unit or ""
        if isinstance(data, Sum):
            encoded.sum.aggregation_temporality = data.aggregation_temporality  # type: ignore[assignment]
            encoded.sum.is_monotonic = data.is_monotonic
            self._add_numbers(encoded.sum.data_points, data.data_points)
        elif isinstance(data, Gauge):
            self._add_numbers(encoded.gauge.data_points, data.data_points)
        elif isinstance(data, Histogram):
            encoded.histogram.aggregation_temporality = data.aggregation_temporality  # type: ignore[assignment]
            self._add_distributions(encoded.histogram.data_points, data.data_points)
        else:
            raise TypeError(type(data).__qualname__)

    def _add_numbers(self, encoded: Any, points: Iterable[NumberDataPoint]) -> None:
        add, constant, breathe = encoded.add, self._numbers.of, self._breathe
        for point in points:
            if point.exemplars:
                raise TypeError("exemplars")
            value, start_ns, now = point.value, point.start_time_unix_nano, point.time_unix_nano
            if isinstance(value, int):
                added = add(start_time_unix_nano=start_ns, time_unix_nano=now, as_int=value)
            else:
                added = add(start_time_unix_nano=start_ns, time_unix_nano=now, as_double=value)
            added.MergeFromString(constant(point.attributes))
            breathe()

    def _add_distributions(self, encoded: Any, points: Iterable[HistogramDataPoint]) -> None:
        add, constant, breathe = encoded.add, self._distributions.of, self._breathe
        for point in points:
            added = add(
                start_time_unix_nano=point.start_time_unix_nano,
                time_unix_nano=point.time_unix_nano,
                count=point.count,
                sum=point.sum,
                bucket_counts=point.bucket_counts,
                explicit_bounds=point.explicit_bounds,
                min=point.min,
                max=point.max,
                exemplars=[_exemplar(exemplar) for exemplar in point.exemplars],
            )
            added.MergeFromString(constant(point.attributes))
            breathe()


class _Constants:
    """The attributes of one kind of point, encoded. A producer hands over the same mapping at each export."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._known: dict[int, tuple[Any, bytes]] = {}  # by id; the mapping is kept, so that its id stays its own
        self._former = self._known

    def __len__(self) -> int:
        return len(self._known)

    def begin(self) -> None:
        """What is not asked for from now on is forgotten at the next call."""
        self._former, self._known = self._known, {}

    def of(self, attributes: Any) -> bytes:
        key = id(attributes)
        known = self._known.get(key) or self._former.get(key)
        if known is None:
            known = attributes, self._kind(attributes=_key_values(attributes)).SerializeToString()
        self._known[key] = known
        return known[1]


def _exemplar(exemplar: Exemplar) -> proto.Exemplar:
    """Without filtered attributes, which ours have none of."""
    return proto.Exemplar(
        time_unix_nano=exemplar.time_unix_nano,
        as_double=exemplar.value,
        trace_id=exemplar.trace_id.to_bytes(16, "big") if exemplar.trace_id is not None else b"",
        span_id=exemplar.span_id.to_bytes(8, "big") if exemplar.span_id is not None else b"",
    )


def _key_values(attributes: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in attributes.items()]


def _is_ours(scope_metrics: Any) -> bool:
    return bool(scope_metrics.scope.name == SCOPE_NAME)


def _without_ours(resource_metrics: Any) -> Any:
    scopes = [replace(scope, metrics=[]) if _is_ours(scope) else scope for scope in resource_metrics.scope_metrics]
    return replace(resource_metrics, scope_metrics=scopes)
