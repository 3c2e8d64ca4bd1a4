"""What metrics are called on the page. The stock exporter is asked once, so that both agree in all its versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as StockFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from amptalk_otel._catalogue import CATALOGUE, Kind, Metric
from amptalk_otel._version import SCOPE_NAME

EOF = b"# EOF\n"
_MARK = "metric"
_NO_LABEL = re.compile(r"[^a-zA-Z0-9]+")
_TARGET = "target"


@dataclass(frozen=True)
class Family:
    """How a metric appears on the page: `kind` in OpenMetrics' words, and headers without any sample."""

    name: str
    kind: str
    samples: tuple[str, ...]
    classic: bytes
    openmetrics: bytes


class _Some(Collector):
    """Families as the encoders want them."""

    def __init__(self, families: Iterable[StockFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[StockFamily]:
        return self._families


def page_of(family: StockFamily, *, openmetrics: bool) -> bytes:
    """A family as prometheus_client writes it; without the end of the page."""
    some: Any = _Some([family])  # the encoders only call `collect`; in old versions they say that they want a registry
    encode: Any = generate_openmetrics  # untyped
    page: bytes = encode(some).removesuffix(EOF) if openmetrics else generate_latest(some)
    return page


def label_name(attribute: str) -> str:
    """https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#metric-attributes."""
    return _NO_LABEL.sub("_", attribute)


class Families:
    """The catalogue's families by the name of the metric, and the page's first one, `target_info`.

    Making them takes about 10 ms. They are empty where the SDK is disabled by `OTEL_SDK_DISABLED`.
    """

    def __init__(self, resource_attributes: Mapping[str, Any]) -> None:
        self.by_metric: dict[str, Family] = {}
        self.target: Family = Family(_TARGET, "info", (), b"", b"")
        self.target_labels: dict[str, str] = {}
        for stock in _ask(Resource(resource_attributes)):
            labels = stock.samples[0].labels
            if stock.name == _TARGET:
                self.target, self.target_labels = _family(stock), labels
            elif _MARK in labels:  # and none of the SDK's own
                self.by_metric[labels[_MARK]] = _family(stock)


def _ask(resource: Resource) -> list[StockFamily]:
    """One point of each metric as the stock exporter gives it."""
    registry = CollectorRegistry(auto_describe=False)
    provider = MeterProvider(
        [PrometheusMetricReader(registry=registry, scope_info_enabled=False)],
        resource=resource,
        exemplar_filter=AlwaysOffExemplarFilter(),  # or the environment would be read
        shutdown_on_exit=False,
    )
    try:
        meter = provider.get_meter(SCOPE_NAME)
        for metric in CATALOGUE:
            _tell_once(meter, metric)
        return list(registry.collect())
    finally:
        provider.shutdown()


def _tell_once(meter: Any, metric: Metric) -> None:
    make, tell = {
        Kind.COUNTER: (meter.create_counter, "add"),
        Kind.UP_DOWN_COUNTER: (meter.create_up_down_counter, "add"),
        Kind.GAUGE: (meter.create_gauge, "set"),
        Kind.HISTOGRAM: (meter.create_histogram, "record"),
    }[metric.kind]
    instrument = make(metric.name, metric.unit, metric.description)
    getattr(instrument, tell)(1, {_MARK: metric.name})


def _family(stock: StockFamily) -> Family:
    names = tuple(dict.fromkeys(sample.name for sample in stock.samples))
    stock.samples = []
    classic, openmetrics = (page_of(stock, openmetrics=flag) for flag in (False, True))
    return Family(stock.name, stock.type, names, classic, openmetrics)
