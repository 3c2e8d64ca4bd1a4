"""The readers of our own pipeline: what the SDK measured and what our producer makes, as one collection.

The SDK registers no producers (https://github.com/open-telemetry/opentelemetry-python/issues/4768). What it documents
for a subclass to override is `MetricReader._receive_metrics`; there our metrics join those of instruments.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import MeterProvider, Observation
from opentelemetry.sdk.metrics import Histogram
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation

from amptalk_otel._deltas import Deltas
from amptalk_otel._exports import Exports, MetricsOut
from amptalk_otel._guard import guarded, logger, swallow
from amptalk_otel._producer import CatalogueProducer
from amptalk_otel._version import SCOPE_NAME, __version__

_MARKER = "amptalk_otel.collection"


def mark_collections(provider: MeterProvider) -> None:
    """Let every collection of `provider` have something in it.

    `MetricReader.collect` is final and hands over nothing where no instrument has a value, so our reader would
    not be asked. One gauge makes sure that it is, and tells with which resource; it is taken out on the way.
    """
    meter = provider.get_meter(SCOPE_NAME, __version__)
    meter.create_observable_gauge(_MARKER, [lambda _options: [Observation(1)]])


class _InAChild:
    def nothing(self) -> None:
        """There is nothing to be done."""


class ProducingReader(PeriodicExportingMetricReader):
    """Pushes a producer's metrics together with those of the provider that it is registered with."""

    def __init__(self, exporter: MetricExporter, producer: CatalogueProducer, **options: Any) -> None:
        """`options` are those of `PeriodicExportingMetricReader`."""
        # All before the base class starts the thread that collects.
        self._producer = producer
        self._deltas = Deltas(_preferred(exporter, "temporality"))
        self._order = threading.Lock()
        self._exports = Exports("metrics")
        self._exports.take(exporter)
        self._is_ended = False
        if isinstance(_preferred(exporter, "aggregation").get(Histogram), ExponentialBucketHistogramAggregation):
            logger.warning("histograms of agents keep their explicit buckets: they are counted before any export")
        super().__init__(MetricsOut(exporter, self._exports), **options)

    @property
    def lost(self) -> int:
        """Pushes that did not succeed."""
        return self._exports.lost

    def _ticker(self) -> None:
        """What the thread runs that pushes. It goes on whatever a callback raises; what the SDK logs there is ours."""
        with self._exports.under_way():
            while not self._ticks_until_the_end() and not self._is_ended:
                pass

    def _ticks_until_the_end(self) -> bool:
        try:
            super()._ticker()
        except BaseException:  # a callback's cancellation or exit: in this thread it is nobody's
            self._exports.note(succeeded=False)
            swallow("pushing metrics")
            return False
        return True

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        if self._exports.are_of_this_process:
            with self._exports.under_way():
                guarded("pushing metrics", self._push, metrics_data, timeout_millis, kwargs)

    def _push(self, metrics_data: MetricsData, timeout_millis: float, options: dict[str, Any]) -> None:
        produced = guarded("producing metrics", self._produced, timeout_millis) or []
        together = _joined(metrics_data, produced)
        if together.resource_metrics:
            super()._receive_metrics(together, timeout_millis, **options)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Push the last values and end. Nothing the second time."""
        if self._is_ended:
            return
        self._is_ended = True
        self._exports.hurry()
        super().shutdown(timeout_millis, **kwargs)

    # In a forked child: the metrics are the parent's, who goes on pushing them. The SDK would push them a second time.
    # Bound to what is there for ever: the SDK before 1.45 raises in each child once the reader is gone.
    _at_fork_reinit = _InAChild().nothing

    def _produced(self, timeout_millis: float) -> list[ScopeMetrics]:
        with self._order:  # a flush may come in between
            scopes = self._producer.produce(timeout_millis)
            retired = self._producer.retired
            return [replace(scope, metrics=self._deltas.convert(scope.metrics, retired)) for scope in scopes]


def _preferred(exporter: MetricExporter, what: str) -> dict[type, Any]:
    """What an exporter wants by kind of instrument. The base class of readers asks for it in this way."""
    return getattr(exporter, f"_preferred_{what}", None) or {}


class InstrumentsReader(PrometheusMetricReader):
    """The stock reader of the pages, for the instruments that the program itself creates."""

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        super()._receive_metrics(_joined(metrics_data, []), timeout_millis, **kwargs)


def _joined(metrics_data: MetricsData, produced: list[ScopeMetrics]) -> MetricsData:
    """`metrics_data` without the marker and with what was produced, each scope once."""
    together = []
    for resource_metrics in metrics_data.resource_metrics:
        scopes = _unmarked(resource_metrics)
        for scope_metrics in produced:
            former = scopes.get(scope_metrics.scope)
            metrics = [*scope_metrics.metrics, *(former.metrics if former is not None else ())]
            scopes[scope_metrics.scope] = replace(scope_metrics, metrics=metrics)
        if scopes:
            together.append(replace(resource_metrics, scope_metrics=list(scopes.values())))
        produced = []  # a provider has one resource
    return MetricsData(together)


def _unmarked(resource_metrics: ResourceMetrics) -> dict[Any, ScopeMetrics]:
    """The metrics of instruments by scope."""
    scopes = {}
    for scope_metrics in resource_metrics.scope_metrics:
        metrics = [metric for metric in scope_metrics.metrics if metric.name != _MARKER]
        if metrics:
            scopes[scope_metrics.scope] = replace(scope_metrics, metrics=metrics)
    return scopes
