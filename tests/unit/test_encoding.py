"""Requests that say the same as those of OpenTelemetry's encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import Exemplar, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource

from amptalk_otel import _otlp
from amptalk_otel._catalogue import CATALOGUE, Snapshot
from amptalk_otel._deltas import Deltas
from amptalk_otel._encoding import Encoder
from amptalk_otel._producer import CatalogueProducer, ProducerBridge
from amptalk_otel._reading import OperationReading, OrchestratorReading
from amptalk_otel._system import CpuWindow
from amptalk_otel.config import Config
from tests.unit.test_deltas import PREFERENCES
from tests.unit.test_sources import agent, distribution, of_type, state


@pytest.fixture(autouse=True)
def cpu_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuWindow, "read", lambda _window: 0.5)


class Town:
    """Something of every kind to tell, and more of it each time."""

    def __init__(self) -> None:
        self.looks = 0
        bridge = ProducerBridge()
        bridge.add(lambda _breathe: self.snapshot())
        self.producer = CatalogueProducer(bridge)
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], Resource({"service.name": "bot", "n": 1}), shutdown_on_exit=False)
        meter = self.provider.get_meter("program", "1.0", "https://example.org/schema", {"a": [1, 2]})
        meter.create_counter("things", "1", "Things").add(2.5, {"flag": True, "ratio": 0.5})
        meter.create_histogram("sizes").record(3)

    def snapshot(self) -> Snapshot:
        self.looks += 1
        agents = [
            agent(
                of_type(received=self.looks + 5, processed=self.looks, failed=2), of_type("café", received=1),
                agent_id=name, recorder_id=index, oldest_age_s=0.25, states=(state(writes=self.looks),),
            )
            for index, name in enumerate(("a", "b", f"passing {self.looks}"))
        ]  # fmt: skip
        return Snapshot(
            machine=True,
            agents=tuple(agents),
            orchestrators=(OrchestratorReading("town", 3, 0, {"command": self.looks}, {("command", "error"): 1}),),
            operations=(OperationReading(("a", None, "x"), distribution(0.1, 1000.0)),),
        )

    def data(self) -> MetricsData:
        stock = self.reader.get_metrics_data()
        assert stock is not None
        (resource,) = stock.resource_metrics
        return MetricsData([replace(resource, scope_metrics=[*self.producer.produce(), *resource.scope_metrics])])


@pytest.fixture
def town() -> Town:
    return Town()


def decoded(request: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    return ExportMetricsServiceRequest.FromString(request.SerializeToString())


def names(request: ExportMetricsServiceRequest) -> set[str]:
    return {
        metric.name
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def forbid_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where our scope goes through OpenTelemetry's encoder."""

    def encode(data: MetricsData) -> ExportMetricsServiceRequest:
        assert data.resource_metrics[0].scope_metrics[0].metrics == []
        return encode_metrics(data)

    monkeypatch.setattr("amptalk_otel._encoding.encode_metrics", encode)


def test_a_request_is_the_one_that_the_stock_encoder_makes(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder()
    forbid_stock(monkeypatch)
    for _ in range(3):
        data = town.data()
        request = decoded(encoder.encode(data))
        assert request == decoded(encode_metrics(data))
    told = {"amptalk.agent.messages.received", "amptalk.agent.message.wait.duration", "amptalk.operation.duration",
            "process.uptime", "amptalk.state.size", "things", "sizes"}  # fmt: skip
    assert told <= names(request)
    assert names(request) - {row.name for row in CATALOGUE} == {"things", "sizes"}


def test_differences_are_encoded_as_such(town: Town) -> None:
    encoder, deltas = Encoder(), Deltas(PREFERENCES["delta"])
    for _ in range(3):
        data = town.data()
        (resource,) = data.resource_metrics
        ours, *others = resource.scope_metrics
        ours = replace(ours, metrics=deltas.convert(ours.metrics))
        data = MetricsData([replace(resource, scope_metrics=[ours, *others])])
        assert decoded(encoder.encode(data)) == decoded(encode_metrics(data))


def test_what_is_not_exported_any_more_is_forgotten(town: Town) -> None:
    encoder = Encoder()
    sizes = []
    for _ in range(4):
        encoder.encode(town.data())
        sizes.append((len(encoder._numbers), len(encoder._distributions)))
    assert len(set(sizes)) == 1


def test_nothing_is_encoded_as_nothing() -> None:
    assert Encoder().encode(MetricsData([])) == ExportMetricsServiceRequest()


def changed(data: MetricsData, change: Callable[[Metric], Metric]) -> MetricsData:
    """With the first metric of ours changed."""
    resource: ResourceMetrics = data.resource_metrics[0]
    ours: ScopeMetrics = resource.scope_metrics[0]
    ours = replace(ours, metrics=[change(ours.metrics[0]), *ours.metrics[1:]])
    return MetricsData([replace(resource, scope_metrics=[ours, *resource.scope_metrics[1:]])])


def with_point(**fields: Any) -> Callable[[Metric], Metric]:
    def change(metric: Metric) -> Metric:
        data: Any = metric.data
        return replace(metric, data=replace(data, data_points=[replace(data.data_points[0], **fields)]))

    return change


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize(
    "change",
    [
        with_point(attributes={"number": 1}),
        with_point(attributes={"list": ["a"]}),
        with_point(exemplars=[Exemplar({"a": "b"}, 1.0, 5, 6, 7)]),
    ],
)
def test_what_is_not_as_expected_is_left_to_the_stock_encoder(
    town: Town, change: Callable[[Metric], Metric], caplog: pytest.LogCaptureFixture
) -> None:
    data = changed(town.data(), change)
    assert Encoder().encode(data) == encode_metrics(data)
    assert [message.split(" (")[0] for message in caplog.messages] == ["encoding metrics was skipped"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_exporters_send_what_the_encoder_makes(protocol: str, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter: Any = _otlp.metric_exporter(Config(otlp_protocol=protocol, otlp_endpoint="http://127.0.0.1:1"))
    if protocol == "http/protobuf" and not hasattr(exporter, "_export_batch"):
        pytest.skip("this version of the exporter encodes and sends in one method")
    data = town.data()
    expected = decoded(encode_metrics(data))
    monkeypatch.setattr(f"{type(exporter).__mro__[1].__module__}.encode_metrics", None)  # not asked
    if protocol == "grpc":
        assert decoded(exporter._translate_data(data)) == expected
    else:
        sent: list[ExportMetricsServiceRequest] = []
        monkeypatch.setattr(exporter, "_export_batch", sent.append)
        exporter.export(data)
        assert [decoded(request) for request in sent] == [expected]
    exporter.shutdown()
