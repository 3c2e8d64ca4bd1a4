"""The series of our page once more, made by hand with other tools, so that all peers hold and show the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

disable_created_metrics: Callable[[], None] = prometheus_client.disable_created_metrics
_IDENTITY = ("agent_id", "agent_name")


@dataclass(frozen=True)
class Series:
    """One series of a page; where it is an agent's, every agent has one like it."""

    family: str
    kind: str  # counter, gauge or histogram
    help: str
    labels: tuple[tuple[str, str], ...]  # without the agent's id and name
    of_agent: bool
    bounds: tuple[float, ...] = ()


def shape_of(page: str, agent_id: str) -> list[Series]:
    """The series of one agent, and those of the whole process."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = {}
    for family in text_string_to_metric_families(page):
        if family.type not in ("counter", "gauge", "histogram"):
            continue
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.get("agent_id", agent_id) != agent_id:
                continue
            bound = labels.pop("le", None)
            of_agent = "agent_id" in labels
            rest = tuple(sorted((name, value) for name, value in labels.items() if name not in _IDENTITY))
            known = found.get((family.name, rest))
            bounds = known.bounds if known is not None else ()
            if bound is not None and bound != "+Inf":
                bounds = (*bounds, float(bound))
            found[family.name, rest] = Series(family.name, family.type, family.documentation, rest, of_agent, bounds)
    return list(found.values())


Change = Callable[[float, dict[str, str]], object]


class Mirror:
    """All series of all agents. Holds nothing for each of them: what is held is what the tool holds."""

    def __init__(self, shape: Sequence[Series], agents: Sequence[tuple[str, str]]) -> None:
        self._agents = agents
        families = {series.family: series for series in shape}
        changes = {name: self._instrument(series) for name, series in families.items()}
        self._series = [(series, changes[series.family]) for series in shape]
        self._fraction = 0.0

    def _instrument(self, series: Series) -> Change:
        """Make the instrument of a family; what changes one of its series."""
        raise NotImplementedError

    def touch(self) -> None:
        """Change every series: counters go up by about one, histograms take a value, gauges get another one."""
        self._fraction = (self._fraction + 0.000734) % 0.01
        value = 1.0 + self._fraction
        for series, change in self._series:
            if not series.of_agent:
                change(value, dict(series.labels))
                continue
            for agent_id, agent_name in self._agents:
                change(value, {"agent_id": agent_id, "agent_name": agent_name, **dict(series.labels)})


class PrometheusMirror(Mirror):
    """With prometheus_client's own instruments."""

    def __init__(self, shape: Sequence[Series], agents: Sequence[tuple[str, str]], registry: CollectorRegistry) -> None:
        disable_created_metrics()  # no other peer has a second series for each counter
        self._registry = registry
        super().__init__(shape, agents)

    def _instrument(self, series: Series) -> Change:
        names = [name for name, _value in series.labels]
        options: dict[str, Any] = {
            "labelnames": [*_IDENTITY, *names] if series.of_agent else names,
            "registry": self._registry,
        }
        if series.kind == "counter":
            counter = prometheus_client.Counter(series.family, series.help, **options)
            return lambda value, labels: _child(counter, labels).inc(value)
        if series.kind == "histogram":
            histogram = prometheus_client.Histogram(series.family, series.help, buckets=series.bounds, **options)
            return lambda value, labels: _child(histogram, labels).observe(value)
        gauge = prometheus_client.Gauge(series.family, series.help, **options)
        return lambda value, labels: _child(gauge, labels).set(value)


def _child(metric: Any, labels: dict[str, str]) -> Any:
    return metric.labels(**labels) if labels else metric


class SdkMirror(Mirror):
    """With the OpenTelemetry SDK's synchronous instruments."""

    def __init__(self, shape: Sequence[Series], agents: Sequence[tuple[str, str]], provider: MeterProvider) -> None:
        self._meter = provider.get_meter("by hand")
        super().__init__(shape, agents)

    def _instrument(self, series: Series) -> Change:
        name, description = series.family, series.help
        if series.kind == "counter":
            return self._meter.create_counter(name, description=description).add
        if series.kind == "histogram":
            return self._meter.create_histogram(
                name, description=description, explicit_bucket_boundaries_advisory=series.bounds
            ).record
        return self._meter.create_gauge(name, description=description).set
