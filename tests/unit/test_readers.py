"""One export of what instruments measured and of what is produced."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from amptalk_otel import _readers
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._exports import Exports
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._readers import InstrumentsReader, ProducingReader, mark_collections
from amptalk_otel._reading import AgentReading
from amptalk_otel._version import SCOPE_NAME, __version__
from tests.unit.test_deltas import PREFERENCES
from tests.unit.test_sources import agent, of_type

TIMEOUT_S = 20.0
RECEIVED = "amptalk.agent.messages.received"
WAIT = "amptalk.agent.message.wait.duration"


class Exporter(MetricExporter):
    """Remembers what it was given."""

    def __init__(self, **preferences: Any) -> None:
        super().__init__(**preferences)
        self.given: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.given.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics of the last export by scope and name."""
        (resource,) = self.given[-1].resource_metrics
        assert resource.resource.attributes["service.name"] == "bot"
        assert len({scope.scope for scope in resource.scope_metrics}) == len(resource.scope_metrics)
        return {scope.scope.name: {metric.name: metric for metric in scope.metrics} for scope in resource.scope_metrics}

    def values(self, name: str) -> list[Any]:
        points = self.metrics().get(SCOPE_NAME, {})[name].data.data_points
        return [point.count if hasattr(point, "count") else point.value for point in points]


class Setup:
    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter
        self.agents: tuple[AgentReading, ...] = (agent(of_type(received=3, processed=3)),)
        bridge = ProducerBridge()
        bridge.add(lambda _breathe: Snapshot(agents=self.agents))
        self.reader = ProducingReader(exporter, CatalogueProducer(bridge), export_interval_millis=math.inf)
        self.provider = MeterProvider([self.reader], Resource({"service.name": "bot"}), shutdown_on_exit=False)
        mark_collections(self.provider)


@contextmanager
def pushing(**preferences: Any) -> Iterator[Setup]:
    setup = Setup(Exporter(**preferences))
    try:
        yield setup
    finally:
        setup.provider.shutdown()


def test_what_is_produced_is_exported_though_no_instrument_has_a_value() -> None:
    with pushing() as setup:
        assert setup.provider.force_flush()
        assert setup.exporter.values(RECEIVED) == [3]
        assert "amptalk_otel.collection" not in setup.exporter.metrics()[SCOPE_NAME]


def test_nothing_is_exported_where_there_is_nothing() -> None:
    with pushing() as setup:
        setup.agents = ()
        assert setup.provider.force_flush()
        assert setup.exporter.given == []


def test_instruments_are_exported_beside_it() -> None:
    with pushing() as setup:
        setup.provider.get_meter("program", "1").create_counter("things").add(5)
        setup.provider.force_flush()
        metrics = setup.exporter.metrics()
        assert [point.value for point in metrics["program"]["things"].data.data_points] == [5]
        assert setup.exporter.values(RECEIVED) == [3]
        setup.agents = ()
        setup.provider.force_flush()
        assert set(setup.exporter.metrics()) == {"program"}


def test_instruments_of_the_same_scope_join_it() -> None:
    with pushing() as setup:
        meter = setup.provider.get_meter(SCOPE_NAME, __version__)
        meter.create_observable_counter("things", [lambda _options: [Observation(5)]])
        setup.provider.force_flush()
        assert (setup.exporter.values("things"), setup.exporter.values(RECEIVED)) == ([5], [3])


@pytest.mark.usefixtures("lenient_guard")
def test_instruments_are_exported_though_nothing_can_be_produced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_producer: CatalogueProducer, timeout_millis: float) -> Any:
        raise OSError("gone")

    with pushing() as setup:
        monkeypatch.setattr(CatalogueProducer, "produce", broken)
        setup.provider.get_meter("program").create_counter("things").add(5)
        setup.provider.force_flush()
        assert set(setup.exporter.metrics()) == {"program"}


def test_an_exporter_that_prefers_differences_gets_them() -> None:
    with pushing(preferred_temporality=PREFERENCES["delta"]) as setup:
        setup.provider.force_flush()
        assert (setup.exporter.values(RECEIVED), setup.exporter.values(WAIT)) == ([3], [3])
        setup.agents = (agent(of_type(received=7, processed=5)),)
        setup.provider.force_flush()
        assert (setup.exporter.values(RECEIVED), setup.exporter.values(WAIT)) == ([4], [2])
        assert setup.exporter.values("amptalk.agent.queue.size") == [2]
        data = setup.exporter.metrics()[SCOPE_NAME][RECEIVED].data
        assert data.aggregation_temporality is AggregationTemporality.DELTA


def test_exponential_buckets_can_not_be_had_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with pushing(preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()}) as setup:
        for _ in range(2):
            setup.provider.force_flush()
        assert setup.exporter.values(WAIT) == [3]
        assert len(setup.exporter.metrics()[SCOPE_NAME][WAIT].data.data_points[0].bucket_counts) == 20
    assert caplog.messages == ["histograms of agents keep their explicit buckets: they are counted before any export"]


def test_the_page_of_the_programs_own_instruments_has_nothing_of_ours() -> None:
    registry = CollectorRegistry(auto_describe=False)
    provider = MeterProvider(
        [InstrumentsReader(registry=registry, disable_target_info=True, scope_info_enabled=False)],
        shutdown_on_exit=False,
    )
    mark_collections(provider)
    assert generate_latest(registry) == b""
    provider.get_meter("program").create_counter("things").add(5)
    assert generate_latest(registry).decode().splitlines()[-1] == "things_total 5.0"
    assert b"collection" not in generate_latest(registry)
    provider.shutdown()


class Ticking(Setup):
    """Pushes by itself."""

    def __init__(self, callback: Callable[[CallbackOptions], list[Observation]], **options: Any) -> None:
        super().__init__(Exporter())
        producer = CatalogueProducer(ProducerBridge())
        self.reader = ProducingReader(self.exporter, producer, export_interval_millis=10.0, **options)
        self.provider = MeterProvider([self.reader], Resource({"service.name": "bot"}), shutdown_on_exit=False)
        self.provider.get_meter("program").create_observable_gauge("things", [callback])


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("raised", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_or_a_task_does_not_end_the_thread_that_pushes(
    raised: type[BaseException], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    failures = 3

    def callback(_options: CallbackOptions) -> list[Observation]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise raised
        return [Observation(5)]

    setup = Ticking(callback)
    wait_until(lambda: bool(setup.exporter.given))
    assert setup.reader.lost == 3
    setup.provider.shutdown()
    (message,) = caplog.messages
    assert message.startswith(f"pushing metrics was skipped ({raised.__qualname__} at ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("lenient_guard")
def test_a_callback_that_always_raises_lets_the_thread_that_pushes_end() -> None:
    def callback(_options: CallbackOptions) -> list[Observation]:
        raise asyncio.CancelledError

    setup = Ticking(callback)
    setup.provider.shutdown(TIMEOUT_S * 1000)
    thread: Any = setup.reader._daemon_thread
    assert not thread.is_alive()
    assert setup.reader.lost > 0


def test_a_reader_that_has_no_provider_yet_loses_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    hear = Exports.heard

    def note(exports: Exports, record: logging.LogRecord) -> None:
        hear(exports, record)
        heard.append(record.getMessage())

    monkeypatch.setattr(Exports, "heard", note)
    reader = ProducingReader(Exporter(), CatalogueProducer(ProducerBridge()), export_interval_millis=1.0)
    wait_until(lambda: bool(heard))
    reader.shutdown()
    assert all("until it is registered" in message for message in heard)
    assert (reader.lost, caplog.messages) == (0, [])


def test_a_collection_that_takes_too_long_costs_one_record_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    collected: list[float] = []

    def callback(_options: CallbackOptions) -> list[Observation]:
        collected.append(time.monotonic())
        time.sleep(0.02)
        return [Observation(5)]

    setup = Ticking(callback, export_timeout_millis=1.0)
    setup.provider.get_meter("program").create_observable_gauge("others", [callback])
    wait_until(lambda: len(collected) > 6)
    setup.provider.shutdown()
    assert [(record.name, record.exc_info) for record in caplog.records] == [("amptalk_otel", None)]
    assert caplog.messages[0].startswith("metrics are not pushed (MetricsTimeoutError); ")
    assert setup.reader.lost >= 2


class Failing(Exporter):
    """Fails in one of the ways that exporters fail."""

    def __init__(self, outcome: MetricExportResult | Exception) -> None:
        super().__init__()
        self.outcome = outcome

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [(MetricExportResult.SUCCESS, 0), (MetricExportResult.FAILURE, 1), (MemoryError("s3cret"), 1)],
)
def test_a_push_that_fails_is_counted(
    outcome: MetricExportResult | Exception, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(Failing(outcome))
    assert setup.provider.force_flush()
    assert setup.reader.lost == lost
    setup.provider.shutdown()
    raised = [message.partition(";")[0] for message in caplog.messages]
    assert raised == (["metrics are not pushed (MemoryError)"] if isinstance(outcome, Exception) else [])


@pytest.mark.usefixtures("lenient_guard")
def test_a_failure_of_ours_does_not_end_the_thread_that_pushes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pushing() as setup:
        with monkeypatch.context() as patched:
            patched.setattr(_readers, "_joined", lambda *_: 1 // 0)
            setup.reader.collect()
        assert [message.split(" (")[0] for message in caplog.messages] == ["pushing metrics was skipped"]
        setup.reader.collect()
        assert setup.exporter.values(RECEIVED) == [3]
