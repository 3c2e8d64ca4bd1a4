"""Our own way out: what it sets up, what it leaves alone, and how it ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import opentelemetry.sdk.version
import pytest
from opentelemetry import metrics, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel import Config, Instrumentation, _otlp, _pipeline, instrument_orchestrator
from amptalk_otel._bridge import bridge_for
from amptalk_otel._catalogue import Snapshot
from amptalk_otel._pipeline import Pipeline
from amptalk_otel._reading import read_operations
from amptalk_otel._recorder import OperationRecorder

TIMEOUT_S = 30.0
HOUR_S = 3600.0
ROOT = Path(__file__).parents[2]


class Orchestrator:
    """An orchestrator without agents."""

    def __init__(self, name: str = "test") -> None:
        self.name = name
        self.agents: dict[str, object] = {}


KEPT: list[Orchestrator] = []  # the instrumentation itself holds no orchestrator


# -- helpers -------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """What an OTLP receiver was sent."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: list[ExportMetricsServiceRequest] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """The value of each point of a sum or gauge, request after request."""
        return [
            point.as_int or point.as_double
            for request in self.requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in (*metric.sum.data_points, *metric.gauge.data_points)
        ]

    def resource(self) -> dict[str, str | int]:
        attributes = self.requests[0].resource_metrics[0].resource.attributes
        return {attribute.key: _value(attribute) for attribute in attributes}


def _value(attribute: KeyValue) -> str | int:
    return attribute.value.string_value or attribute.value.int_value


@contextmanager
def http_collector() -> Iterator[Collector]:
    """An OTLP/HTTP receiver that takes everything."""
    collector = Collector()
    decoders: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
        "identity": bytes,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = decoders[self.headers.get("Content-Encoding", "identity")](body)
            collector.paths.append(self.path)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.requests.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join(TIMEOUT_S)
        server.server_close()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """An OTLP/gRPC receiver that takes everything."""
    collector = Collector()

    def export(request: ExportMetricsServiceRequest, context: grpc.ServicerContext) -> ExportMetricsServiceResponse:
        collector.headers.append({key: str(value) for key, value in context.invocation_metadata()})
        collector.requests.append(request)
        return ExportMetricsServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, ExportMetricsServiceRequest.FromString, ExportMetricsServiceResponse.SerializeToString
    )
    service = "opentelemetry.proto.collector.metrics.v1.MetricsService"
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        collector.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield collector
        finally:
            assert server.stop(None).wait(TIMEOUT_S)


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody else listens at."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def free_port() -> int:
    with taken_port() as port:
        return port


@pytest.fixture(autouse=True)
def end_what_a_failed_test_left() -> Iterator[None]:
    """So that one failure does not make others."""
    yield
    KEPT.clear()
    left = [pipeline for pipeline, _ in _pipeline._shared]
    _pipeline._shared.clear()
    for pipeline in left:
        pipeline.shutdown(TIMEOUT_S)
    assert left == []


@contextmanager
def running(config: Config) -> Iterator[Pipeline]:
    pipeline = Pipeline(config)
    try:
        yield pipeline
    finally:
        pipeline.shutdown(TIMEOUT_S)


def page(url: str | None) -> str:
    assert url is not None
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text


def count(pipeline: Pipeline, number: int) -> None:
    pipeline.meter_provider.get_meter("test").create_counter("things").add(number)


def our_threads() -> list[str]:
    ours = ("amptalk-otel", "OtelPeriodic")
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(ours))


def soon(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + TIMEOUT_S
    while not is_so() and time.monotonic() < until:
        time.sleep(0.002)
    return is_so()


def no_thread_of_ours() -> bool:
    """Whether all threads of ours ended, those that only have to be told waited for."""
    for thread in threading.enumerate():
        if thread.name.startswith(("amptalk-otel", "OtelPeriodic")):
            thread.join(TIMEOUT_S)
    return our_threads() == []


def run_script(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A program of its own; generous with time, as it may be busy."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=90, check=False, cwd=ROOT, env={**os.environ, **environ},
    )  # fmt: skip


# -- who speaks ----------------------------------------------------------------------------------------


def test_the_resource_tells_service_sdk_process_and_runtime() -> None:
    with http_collector() as collector:
        config = Config(
            service_name="meeting-bot",
            resource_attributes={"deployment.environment": "test"},
            metrics_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            count(pipeline, 1)
    resource = collector.resource()
    instance_id = resource.pop("service.instance.id")
    assert resource == {
        "service.name": "meeting-bot",
        "deployment.environment": "test",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": opentelemetry.sdk.version.__version__,
        "process.pid": os.getpid(),
        "process.executable.name": Path(sys.executable).name,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
    }
    assert len(str(instance_id)) == 36


def test_every_pipeline_is_an_instance_of_its_own() -> None:
    ids = {str(_pipeline._resource(Config()).attributes["service.instance.id"]) for _ in range(3)}
    assert len(ids) == 3


def test_the_service_name_goes_before_the_attribute_and_the_attribute_before_the_default() -> None:
    executable = Path(sys.executable).name
    named = {"service.name": "from-attributes"}
    assert _service(Config()) == f"unknown_service:{executable}"
    assert _service(Config(resource_attributes=named)) == "from-attributes"
    assert _service(Config(resource_attributes=named, service_name="from-name")) == "from-name"


def _service(config: Config) -> object:
    return _pipeline._resource(config).attributes["service.name"]


def test_the_resource_of_a_config_made_in_python_is_not_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "not a pair, team=b")
    attributes = _pipeline._resource(Config(service_name="a")).attributes
    assert (attributes["service.name"], attributes.get("team")) == ("a", None)
    assert caplog.messages == []


def test_the_page_tells_the_resource_without_the_command_line() -> None:
    with running(Config(prometheus_port=0, service_name="bot")) as pipeline:
        count(pipeline, 1)
        families = {family.name: family for family in text_string_to_metric_families(page(pipeline.metrics_url))}
    (info,) = families["target_info"].samples
    assert (info.labels["service_name"], info.labels["process_pid"]) == ("bot", str(os.getpid()))
    assert [label for label in info.labels if "command" in label or "args" in label] == []
    assert sys.argv[0] not in info.labels.values()


# -- what is left alone --------------------------------------------------------------------------------


def test_nothing_global_is_touched() -> None:
    def state() -> tuple[object, ...]:
        return (
            metrics.get_meter_provider(),
            trace.get_tracer_provider(),
            sorted(family.name for family in REGISTRY.collect()),
            *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            sys.excepthook,
            threading.excepthook,
        )

    before = state()
    with instrument_orchestrator(Orchestrator(), config=Config(prometheus_port=0)) as instrumentation:
        assert "process_uptime_seconds" in page(instrumentation.metrics_url)
        assert state() == before
    assert state() == before


# -- exporters -----------------------------------------------------------------------------------------


def test_the_page_serves_what_is_measured() -> None:
    with running(Config(prometheus_port=0)) as pipeline:
        count(pipeline, 3)
        assert "\nthings_total 3.0\n" in page(pipeline.metrics_url)
        assert soon(lambda: our_threads() == ["amptalk-otel-metrics"])  # that which answered has ended


def test_our_own_readers_cost_the_program_nothing_per_message() -> None:
    with running(Config(prometheus_port=0)) as pipeline:
        assert bridge_for(pipeline.meter_provider) is pipeline.bridge
        recorder = OperationRecorder()
        pipeline.bridge.report(recorder)
        assert recorder.observers == ()


def test_the_pipelines_own_provider_given_again_tells_nothing_twice() -> None:
    orchestrator, config = Orchestrator("one"), Config(prometheus_port=free_port())
    first = instrument_orchestrator(orchestrator, config=config)
    (pipeline,) = [pipeline for pipeline, _users in _pipeline._shared]
    again = instrument_orchestrator(orchestrator, meter_provider=pipeline.meter_provider)
    two = Orchestrator("two")
    other = instrument_orchestrator(two, meter_provider=pipeline.meter_provider)
    assert again is first
    assert other is not first
    lines = page(first.metrics_url).splitlines()
    assert sum(line.startswith("process_uptime_seconds ") for line in lines) == 1
    assert len([line for line in lines if line.startswith("amptalk_orchestrator_agents{")]) == 2 * 2
    other.uninstrument()
    assert first.shutdown(TIMEOUT_S) is True


@pytest.mark.parametrize("scope_labels", [False, True])
def test_labels_of_the_scope_are_there_on_request(scope_labels: bool) -> None:
    config = Config(prometheus_port=0, prometheus_scope_labels=scope_labels)
    with instrument_orchestrator(Orchestrator(), config=config) as instrumentation:
        families = list(text_string_to_metric_families(page(instrumentation.metrics_url)))
        labels = {family.name: family.samples[0].labels.get("otel_scope_name") for family in families}
    assert labels["process_uptime_seconds"] == ("amptalk_otel" if scope_labels else None)
    assert labels["target_info"] is None


def test_one_push_has_what_is_watched_and_the_programs_own_metrics() -> None:
    with http_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            metric_export_interval_s=HOUR_S,
        )
        orchestrator = Orchestrator("one")
        with instrument_orchestrator(orchestrator, config=config):
            (pipeline,) = [pipeline for pipeline, _users in _pipeline._shared]
            count(pipeline, 3)
            assert pipeline.flush(TIMEOUT_S)
            (request,) = collector.requests
            (resource,) = request.resource_metrics
            assert {scope.scope.name for scope in resource.scope_metrics} == {"amptalk_otel", "test"}
            assert (collector.values("things"), collector.values("amptalk.orchestrator.agents")) == ([3], [0, 0])
            assert collector.values("amptalk_otel.collection") == []


@pytest.mark.parametrize(("preference", "temporality"), [("delta", 1), ("cumulative", 2)])
def test_differences_are_pushed_where_the_environment_prefers_them(
    preference: str, temporality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    with http_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            recorder = OperationRecorder()
            pipeline.bridge.add(lambda _breathe: Snapshot(operations=read_operations(recorder)))
            for measured in (2, 1):
                for _ in range(measured):
                    recorder.measured("a", "A", "transcribe", 0.25)
                assert pipeline.flush(TIMEOUT_S)
    found = [
        (metric.histogram.aggregation_temporality, metric.histogram.data_points[0].count)
        for request in collector.requests
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
    ]
    assert found[:2] == [(temporality, 2), (temporality, 1 if preference == "delta" else 3)]


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("raised", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_or_a_task_costs_the_page_the_programs_own_instruments(
    raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def callback(_options: metrics.CallbackOptions) -> list[metrics.Observation]:
        raise raised

    orchestrator = Orchestrator()
    with instrument_orchestrator(orchestrator, config=Config(prometheus_port=0)) as instrumentation:
        (pipeline,) = [pipeline for pipeline, _users in _pipeline._shared]
        pipeline.meter_provider.get_meter("test").create_observable_gauge("things", [callback])
        for _ in range(3):
            assert "process_uptime_seconds" in page(instrumentation.metrics_url)
    (message,) = caplog.messages
    assert message.startswith(f"reading the program's own instruments was skipped ({raised.__qualname__} at ")


def test_a_page_may_have_more_series_than_the_sdks_limit() -> None:
    with running(Config(prometheus_port=0)) as pipeline:
        counter = pipeline.meter_provider.get_meter("test").create_counter("things")
        for number in range(2500):
            counter.add(1, {"number": number})
        text = page(pipeline.metrics_url)
    assert text.count("\nthings_total{number=") == 2500
    assert "overflow" not in text


def test_none_sets_up_nothing() -> None:
    with running(Config(metrics_exporters=("none",))) as pipeline:
        count(pipeline, 1)
        assert (pipeline.metrics_url, our_threads()) == (None, [])
        assert pipeline.flush(TIMEOUT_S) is True
        assert pipeline.shutdown(TIMEOUT_S) is True


@pytest.mark.parametrize("name", ["always_on", "always_off", "trace_based"])
def test_every_exemplar_filter_works(name: str) -> None:
    with running(Config(prometheus_port=0, exemplar_filter=name)) as pipeline:
        count(pipeline, 3)
        assert "\nthings_total 3.0\n" in page(pipeline.metrics_url)


def test_a_busy_port_costs_one_log_line_and_the_page_only(caplog: pytest.LogCaptureFixture) -> None:
    with taken_port() as port, http_collector() as collector:
        config = Config(
            metrics_exporters=("prometheus", "otlp"),
            prometheus_port=port,
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            metric_export_interval_s=HOUR_S,
        )
        with instrument_orchestrator(Orchestrator(), config=config) as instrumentation:
            assert instrumentation.active
            assert instrumentation.metrics_url is None
        assert caplog.messages == [
            f"metrics are not served: localhost:{port} can't be bound (Address already in use); "
            "set OTEL_EXPORTER_PROMETHEUS_PORT to a free port, or to 0 for any"
        ]
        assert len(collector.values("process.uptime")) == 1
    assert no_thread_of_ours()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "host with spaces", "." * 3, "a" * 300])
def test_a_host_that_can_not_be_bound_costs_one_log_line_and_the_page_only(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    with instrument_orchestrator(Orchestrator(), config=Config(prometheus_host=host, prometheus_port=0)) as handle:
        assert (handle.active, handle.metrics_url) == (True, None)
    (message,) = caplog.messages
    assert message.startswith(f"metrics are not served: {host}:0 can't be bound (")
    assert message.endswith("; set OTEL_EXPORTER_PROMETHEUS_HOST to an address of this machine")


def test_the_sdk_disabled_means_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    orchestrator = Orchestrator()
    untouched = dict(vars(orchestrator))
    threads = threading.active_count()
    instrumentation = instrument_orchestrator(orchestrator)
    assert (instrumentation.active, instrumentation.metrics_url, instrumentation.read()) == (False, None, [])
    assert vars(orchestrator) == untouched
    assert threading.active_count() == threads
    assert instrumentation.shutdown() is True


@pytest.mark.parametrize(
    ("protocol", "module"),
    [
        ("http/protobuf", "opentelemetry.exporter.otlp.proto.http"),
        ("http/protobuf", "opentelemetry.exporter.otlp.proto.http.metric_exporter"),
        ("grpc", "opentelemetry.exporter.otlp.proto.grpc.metric_exporter"),
        ("grpc", "grpc"),
    ],
)
def test_otlp_without_the_extra_costs_one_warning_with_the_line_that_installs_it(
    protocol: str, module: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = Config(metrics_exporters=("otlp", "prometheus"), otlp_protocol=protocol, prometheus_port=0)
    with running(config) as pipeline:
        count(pipeline, 3)
        assert "\nthings_total 3.0\n" in page(pipeline.metrics_url)
    assert caplog.messages == [
        "metrics are not pushed: the otlp exporter is not installed; run: pip install 'amptalk_otel[otlp]'"
    ]


def test_an_exporter_that_can_not_be_made_costs_one_warning_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(config: Config) -> MetricExporter:
        raise RuntimeError(f"no exporter for {dict(config.otlp_headers)}")

    monkeypatch.setattr(_otlp, "metric_exporter", fail)
    config = Config(
        metrics_exporters=("otlp", "prometheus"), otlp_headers={"authorization": "s3cret"}, prometheus_port=0
    )
    with running(config) as pipeline:
        assert pipeline.metrics_url is not None
    assert caplog.messages == ["the otlp exporter could not be made (RuntimeError); going on without it"]
    assert "s3cret" not in caplog.text


_CONSOLE = """
from amptalk_otel import Config, instrument_orchestrator
class Orchestrator:
    name, agents = "test", {}
orchestrator = Orchestrator()
handle = instrument_orchestrator(orchestrator, config=Config(metrics_exporters=("console",), service_name="bot"))
assert handle.metrics_url is None
assert handle.shutdown()
"""


def test_the_console_exporter_writes_json_to_stdout() -> None:
    done = run_script(_CONSOLE)
    assert (done.returncode, done.stderr) == (0, "")
    (resource,) = json.loads(done.stdout)["resource_metrics"]
    assert resource["resource"]["attributes"]["service.name"] == "bot"
    (scope,) = resource["scope_metrics"]
    assert "process.uptime" in [metric["name"] for metric in scope["metrics"]]


# -- pushing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("compression", "encoding"), [("none", None), ("gzip", "gzip"), ("deflate", "deflate")])
def test_the_last_values_are_pushed_at_shutdown(compression: str, encoding: str | None) -> None:
    with http_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{collector.port}/",
            otlp_compression=compression,
            otlp_headers={"Authorization": "Bearer abc", "x-tenant": "a"},
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            count(pipeline, 3)
            assert collector.requests == []
            assert pipeline.shutdown(TIMEOUT_S) is True
        assert collector.values("things") == [3]
        assert collector.paths == ["/v1/metrics"]
        (headers,) = collector.headers
    assert headers.get("content-encoding") == encoding
    assert (headers["authorization"], headers["x-tenant"]) == ("Bearer abc", "a")
    assert headers["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_the_last_values_are_pushed_over_grpc(compression: str) -> None:
    with grpc_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_protocol="grpc",
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            otlp_compression=compression,
            otlp_headers={"Authorization": "Bearer abc"},  # gRPC itself takes lower case only
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            count(pipeline, 3)
            assert pipeline.shutdown(TIMEOUT_S) is True
        assert collector.values("things") == [3]
        assert collector.headers[0]["authorization"] == "Bearer abc"


def test_grpc_without_tls_is_asked_for_where_the_endpoint_has_no_scheme() -> None:
    with grpc_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_protocol="grpc",
            otlp_endpoint=f"127.0.0.1:{collector.port}",
            otlp_insecure=True,
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            count(pipeline, 3)
        assert collector.values("things") == [3]


def test_values_are_pushed_at_the_interval_and_by_flush() -> None:
    with http_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_metrics_endpoint=f"http://127.0.0.1:{collector.port}/elsewhere?tenant=a",
            otlp_endpoint="http://127.0.0.1:1",
            metric_export_interval_s=HOUR_S,
        )
        with running(config) as pipeline:
            count(pipeline, 3)
            assert pipeline.flush(TIMEOUT_S) is True
            assert collector.values("things") == [3]
            count(pipeline, 4)
        assert collector.values("things") == [3, 7]
        assert collector.paths == ["/elsewhere?tenant=a"] * 2


def test_the_interval_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = BlockingExporter()
    exporter.go_on.set()
    monkeypatch.setattr(_otlp, "metric_exporter", lambda _config: exporter)
    with running(Config(metrics_exporters=("otlp",), metric_export_interval_s=0.01)) as pipeline:
        count(pipeline, 1)
        assert exporter.exporting.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [("http/protobuf", "http://localhost:4318/v1/metrics"), ("grpc", "localhost:4317")],
)
def test_the_collector_of_a_config_made_in_python_is_not_read_from_the_environment(
    protocol: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://elsewhere:1")
    exporter: Any = _otlp.metric_exporter(Config(otlp_protocol=protocol))
    assert exporter._endpoint == endpoint
    exporter.shutdown()


def test_certificates_are_handed_to_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bytes | None, ...]] = []

    def credentials(*parts: bytes | None) -> grpc.ChannelCredentials:
        given.append(parts)
        return real()

    real = grpc.ssl_channel_credentials
    monkeypatch.setattr(grpc, "ssl_channel_credentials", credentials)
    for name in ("ca", "key", "client"):
        (tmp_path / f"{name}.pem").write_bytes(name.encode())
    config = Config(
        otlp_protocol="grpc",
        otlp_endpoint="https://127.0.0.1:1",
        otlp_certificate=str(tmp_path / "ca.pem"),
        otlp_client_key=str(tmp_path / "key.pem"),
        otlp_client_certificate=str(tmp_path / "client.pem"),
    )
    _otlp.metric_exporter(config).shutdown()
    assert given == [(b"ca", b"key", b"client")]


def test_a_certificate_that_is_not_there_costs_the_exporter_only(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(
        metrics_exporters=("otlp", "prometheus"),
        otlp_protocol="grpc",
        otlp_certificate="/no/such.pem",
        prometheus_port=0,
    )
    with running(config) as pipeline:
        assert pipeline.metrics_url is not None
    assert caplog.messages == ["the otlp exporter could not be made (FileNotFoundError); going on without it"]


# -- ending --------------------------------------------------------------------------------------------


class BlockingExporter(MetricExporter):
    """An exporter whose collector answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.exporting = threading.Event()
        self.go_on = threading.Event()
        self.ended = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.exporting.set()
        assert self.go_on.wait(TIMEOUT_S)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.ended += 1


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingExporter]:
    exporter = BlockingExporter()
    monkeypatch.setattr(_otlp, "metric_exporter", lambda _config: exporter)
    yield exporter
    exporter.go_on.set()
    assert no_thread_of_ours()


PUSHING = Config(metrics_exporters=("prometheus", "otlp"), prometheus_port=0, metric_export_interval_s=HOUR_S)


def test_shutdown_returns_true_and_leaves_no_thread(blocking: BlockingExporter) -> None:
    blocking.go_on.set()
    pipeline = Pipeline(PUSHING)
    url = pipeline.metrics_url
    assert our_threads() == ["OtelPeriodicExportingMetricReader", "amptalk-otel-metrics"]
    assert pipeline.shutdown(TIMEOUT_S) is True
    assert our_threads() == []
    assert blocking.ended == 1
    with pytest.raises(OSError, match="refused"):
        page(url)


def test_shutdown_is_harmless_the_second_time(blocking: BlockingExporter) -> None:
    blocking.go_on.set()
    pipeline = Pipeline(PUSHING)
    assert [pipeline.shutdown(TIMEOUT_S) for _ in range(3)] == [True, True, True]
    assert blocking.ended == 1


def test_shutdown_returns_false_while_a_collector_does_not_answer_and_serves_no_more(
    blocking: BlockingExporter,
) -> None:
    pipeline = Pipeline(PUSHING)
    count(pipeline, 1)
    url = pipeline.metrics_url
    assert pipeline.shutdown(0.2) is False
    assert blocking.exporting.is_set()
    assert not blocking.go_on.is_set()
    with pytest.raises(OSError, match="refused"):
        page(url)
    for thread in threading.enumerate():
        if thread.name in our_threads():
            assert thread.daemon


def test_flush_returns_false_while_a_collector_does_not_answer(blocking: BlockingExporter) -> None:
    with running(PUSHING) as pipeline:
        count(pipeline, 1)
        assert pipeline.flush(0.2) is False
        assert blocking.exporting.is_set()
        blocking.go_on.set()
        assert pipeline.flush(TIMEOUT_S) is True


@pytest.mark.usefixtures("lenient_guard")
def test_what_ends_a_program_or_a_task_is_a_failure_in_a_thread_of_ours(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def act(_timeout_ms: float) -> None:
        raise asyncio.CancelledError

    assert _pipeline._within(TIMEOUT_S, act, lambda _timeout_ms: None) is False
    (message,) = caplog.messages
    assert message.startswith("ending an exporter was skipped (CancelledError at ")
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_is_the_programs_where_there_is_no_thread_for_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def act(_timeout_ms: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(KeyboardInterrupt):
        _pipeline._within(TIMEOUT_S, act)


def test_an_interpreter_that_starts_no_more_threads_still_pushes_the_last_values(
    blocking: BlockingExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    blocking.go_on.set()
    with running(PUSHING) as pipeline:
        count(pipeline, 1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert pipeline.shutdown(TIMEOUT_S) is True
        assert blocking.exporting.is_set()
        assert blocking.ended == 1


def test_the_handle_returns_false_while_a_collector_does_not_answer(blocking: BlockingExporter) -> None:
    instrumentation = instrument_orchestrator(Orchestrator(), config=PUSHING)
    assert instrumentation.shutdown(0.2) is False
    assert (instrumentation.active, instrumentation.metrics_url) == (False, None)
    assert instrumentation.shutdown(0.2) is True


# -- sharing -------------------------------------------------------------------------------------------


def both(config: Config, other: Config) -> tuple[Instrumentation, Instrumentation]:
    one, two = Orchestrator("one"), Orchestrator("two")
    first = instrument_orchestrator(one, config=config)
    second = instrument_orchestrator(two, config=other)
    KEPT.extend((one, two))
    return first, second


def test_equal_settings_share_one_page_and_the_last_to_leave_ends_it() -> None:
    port = free_port()
    first, second = both(Config(prometheus_port=port), Config(prometheus_port=port))
    assert first.metrics_url == second.metrics_url == f"http://localhost:{port}/metrics"
    assert our_threads() == ["amptalk-otel-metrics"]
    text = page(second.metrics_url)
    assert 'amptalk_orchestrator_agents{agent_state="running",orchestrator_name="one"} 0.0' in text
    assert 'amptalk_orchestrator_agents{agent_state="running",orchestrator_name="two"} 0.0' in text
    assert first.shutdown(TIMEOUT_S) is True
    text = page(second.metrics_url)
    assert 'orchestrator_name="one"' not in text
    assert 'orchestrator_name="two"' in text
    assert second.shutdown(TIMEOUT_S) is True
    assert our_threads() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S)


def test_who_leaves_a_shared_page_twice_leaves_once() -> None:
    port = free_port()
    first, second = both(Config(prometheus_port=port), Config(prometheus_port=port))
    assert [first.shutdown(TIMEOUT_S), first.shutdown(TIMEOUT_S)] == [True, True]
    assert 'orchestrator_name="two"' in page(second.metrics_url)
    assert second.shutdown(TIMEOUT_S) is True


def test_who_leaves_a_shared_collector_pushes_its_last_values() -> None:
    with http_collector() as collector:
        config = Config(
            metrics_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{collector.port}",
            metric_export_interval_s=HOUR_S,
        )
        first, second = both(config, config)
        assert first.shutdown(TIMEOUT_S) is True
        assert len(collector.requests) == 1
        assert "one" in str(collector.requests[0])
        assert second.shutdown(TIMEOUT_S) is True
        assert len(collector.requests) == 2
        assert 'string_value: "one"' not in str(collector.requests[1])


def test_equal_settings_with_port_0_have_a_page_each() -> None:
    first, second = both(Config(prometheus_port=0), Config(prometheus_port=0))
    assert first.metrics_url != second.metrics_url
    assert 'orchestrator_name="two"' not in page(first.metrics_url)
    assert 'orchestrator_name="two"' in page(second.metrics_url)
    assert (first.shutdown(TIMEOUT_S), second.shutdown(TIMEOUT_S)) == (True, True)


def test_who_comes_second_to_an_address_shares_its_page_and_settings(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    first, second = both(
        Config(prometheus_port=port, service_name="first"), Config(prometheus_port=port, service_name="second")
    )
    assert first.metrics_url == second.metrics_url == f"http://localhost:{port}/metrics"
    text = page(second.metrics_url)
    assert 'service_name="first"' in text
    assert 'service_name="second"' not in text
    assert (first.shutdown(TIMEOUT_S), second.shutdown(TIMEOUT_S)) == (True, True)
    assert caplog.messages == []


def test_an_exporter_that_a_shared_address_leaves_out_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    first, second = both(
        Config(prometheus_port=port), Config(prometheus_port=port, metrics_exporters=("prometheus", "console", "otlp"))
    )
    assert first.metrics_url == second.metrics_url
    assert (first.shutdown(TIMEOUT_S), second.shutdown(TIMEOUT_S)) == (True, True)
    assert caplog.messages == [
        f"localhost:{port} is served already with other settings: no console, otlp exporter is added"
    ]


def test_other_addresses_are_not_shared() -> None:
    ports = free_port(), free_port()
    first, second = both(*(Config(prometheus_port=port) for port in ports))
    assert [first.metrics_url, second.metrics_url] == [f"http://localhost:{port}/metrics" for port in ports]
    assert (first.shutdown(TIMEOUT_S), second.shutdown(TIMEOUT_S)) == (True, True)


# -- the end of the program ----------------------------------------------------------------------------

_NEVER_SHUT_DOWN = """
from amptalk_otel import instrument_orchestrator
class Orchestrator:
    def __init__(self):
        self.name, self.agents = "test", {}
orchestrator = Orchestrator()
handle = instrument_orchestrator(orchestrator)
assert handle.active
"""


def pushing_to(port: int, **environ: str) -> dict[str, str]:
    return {
        "OTEL_METRICS_EXPORTER": "otlp,prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        **environ,
    }


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_program_that_never_shut_down_ends_well_though_its_collector_refuses_connections(protocol: str) -> None:
    with refusing_port() as port:
        done = run_script(_NEVER_SHUT_DOWN, **pushing_to(port, OTEL_EXPORTER_OTLP_PROTOCOL=protocol))
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr


def test_a_program_that_never_shut_down_pushes_its_last_values_as_it_ends() -> None:
    with http_collector() as collector:
        done = run_script(_NEVER_SHUT_DOWN, **pushing_to(collector.port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(collector.requests) == 1
    assert len(collector.values("process.uptime")) == 1


_FORK = (
    _NEVER_SHUT_DOWN
    + """
import os, signal, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if child == 0:
    signal.alarm(20)
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_ends_without_touching_the_parents_pipeline() -> None:
    with http_collector() as collector:
        done = run_script(_FORK, **pushing_to(collector.port))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(collector.values("process.uptime")) == 1


_FORK_AND_INSTRUMENT = (
    _NEVER_SHUT_DOWN
    + """
import os, signal, sys, urllib.request, warnings
warnings.simplefilter("ignore", DeprecationWarning)
url = handle.metrics_url
child = os.fork()
if child == 0:
    signal.alarm(20)
    mine = Orchestrator()
    mine.name = "child"
    handle = instrument_orchestrator(mine)
    print(handle.metrics_url)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert b'orchestrator_name="test"' in urllib.request.urlopen(url, timeout=20).read()
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_share_the_parents_page() -> None:
    port = free_port()
    done = run_script(_FORK_AND_INSTRUMENT, OTEL_EXPORTER_PROMETHEUS_PORT=str(port))
    assert (done.returncode, done.stdout) == (0, "None\n")
    assert done.stderr.count("\n") == 1
    assert f"metrics are not served: localhost:{port} can't be bound" in done.stderr


_FORK_AND_SHUT_DOWN = (
    _NEVER_SHUT_DOWN
    + """
import os, signal, sys, urllib.request, warnings
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if child == 0:
    signal.alarm(20)
    handle.shutdown(2.0)
    os._exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert b"process_uptime_seconds" in urllib.request.urlopen(handle.metrics_url, timeout=20).read()
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_that_shuts_down_neither_hangs_nor_ends_the_parents_page() -> None:
    done = run_script(_FORK_AND_SHUT_DOWN, OTEL_EXPORTER_PROMETHEUS_PORT="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
