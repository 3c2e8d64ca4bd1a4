"""The harness itself: what the real servers are sent is what they say, and they come and go as told."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from prometheus_client import CollectorRegistry, Counter, start_http_server

from tests.integration.servers import (
    INSTALL_SCRIPT,
    Collector,
    Prometheus,
    ServerError,
    VictoriaMetrics,
    answers,
    check_metrics,
    fetch,
    find_server,
    metric_key,
    parse_metrics,
    read_json_lines,
    wait_until,
)

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / INSTALL_SCRIPT
RESOURCE = Resource({"service.name": "harness", "service.instance.id": "one"})
BOUNDS = [0.5, 1.0, 2.5]
COLOURED: dict[str, Any] = {"colour": "red", "number": 7, "good": True}

CLEAN_PAGE = "# HELP fish_total Fish seen.\n# TYPE fish_total counter\nfish_total 3\n"
LINT_PAGE = "# TYPE fish counter\nfish 3\n"
BROKEN_PAGE = "# TYPE fish_total counter\nfish_total{ 3\n"


# ------------------------------------------------------------------------------------------------------------ helpers


@contextlib.contextmanager
def page_of(registry: CollectorRegistry) -> Iterator[str]:
    """Serve a registry on a free port; give the address to scrape."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def send_metrics(exporter: MetricExporter, *, extra: int = 0) -> None:
    """Export one counter (5 and `extra`) and one histogram (0.25, 2.0 and 4.0), both with the same attributes."""
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    meter = provider.get_meter("harness.meter")
    counter = meter.create_counter("fish.seen", unit="{fish}", description="Fish seen.")
    histogram = meter.create_histogram("swim.duration", unit="s", explicit_bucket_boundaries_advisory=BOUNDS)
    counter.add(5 + extra, COLOURED)
    for duration_s in (0.25, 2.0, 4.0):
        histogram.record(duration_s, COLOURED)
    provider.shutdown(timeout_millis=10_000)


def send_spans(exporter: SpanExporter) -> None:
    """Export a root span, and a consumer span under it with a link, an event and an error."""
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("harness.tracer")
    with tracer.start_as_current_span("root", kind=SpanKind.PRODUCER) as root:
        link = Link(root.get_span_context(), {"why": "cause"})
        with tracer.start_as_current_span("process fish", kind=SpanKind.CONSUMER, links=[link]) as span:
            span.set_attributes({**COLOURED, "names": ("a", "b"), "ratio": 0.5})
            span.add_event("caught", {"size": 3})
            span.set_status(Status(StatusCode.ERROR, "it slipped"))
    provider.shutdown()


def assert_metrics_arrived(collector: Collector) -> None:
    metrics = collector.wait_for_metrics(lambda found: len(found) >= 2)
    assert set(metrics) == {metric_key("fish.seen", COLOURED), metric_key("swim.duration", COLOURED)}
    counter = metrics[metric_key("fish.seen", COLOURED)]
    assert (counter.kind, counter.unit, counter.description) == ("sum", "{fish}", "Fish seen.")
    assert (counter.value, counter.monotonic, counter.temporality) == (5, True, "cumulative")
    assert isinstance(counter.value, int)
    assert counter.attributes == COLOURED
    assert dict(counter.resource) == {"service.name": "harness", "service.instance.id": "one"}
    assert counter.scope == "harness.meter"
    histogram = metrics[metric_key("swim.duration", COLOURED)]
    assert (histogram.kind, histogram.unit, histogram.temporality) == ("histogram", "s", "cumulative")
    assert (histogram.count, histogram.sum, histogram.min, histogram.max) == (3, 6.25, 0.25, 4.0)
    assert (histogram.bounds, histogram.bucket_counts) == (tuple(BOUNDS), (1, 0, 1, 1))
    assert (histogram.value, histogram.monotonic) == (None, None)
    assert 0 <= time.time() - histogram.time_ns / 1e9 < 60
    assert histogram.start_time_ns <= histogram.time_ns


def assert_spans_arrived(collector: Collector) -> None:
    spans = {span.name: span for span in collector.wait_for_spans(lambda found: len(found) >= 2)}
    assert set(spans) == {"root", "process fish"}
    root, child = spans["root"], spans["process fish"]
    assert (root.kind, root.parent_span_id, root.status) == ("producer", None, "unset")
    assert re.fullmatch("[0-9a-f]{32} [0-9a-f]{16}", f"{root.trace_id} {root.span_id}")
    assert (child.kind, child.trace_id, child.parent_span_id) == ("consumer", root.trace_id, root.span_id)
    assert child.attributes == {**COLOURED, "names": ("a", "b"), "ratio": 0.5}
    assert (child.status, child.status_message) == ("error", "it slipped")
    assert [(link.trace_id, link.span_id, link.attributes) for link in child.links] == [
        (root.trace_id, root.span_id, {"why": "cause"})
    ]
    assert [(event.name, event.attributes) for event in child.events] == [("caught", {"size": 3})]
    assert root.start_ns <= child.start_ns <= child.events[0].time_ns <= child.end_ns <= root.end_ns
    assert (child.scope, child.resource) == ("harness.tracer", dict(RESOURCE.attributes))


# --------------------------------------------------------------------------------------------------------- Prometheus


def test_prometheus_answers_with_the_exact_value_that_was_scraped(
    prometheus_factory: Callable[..., Prometheus],
) -> None:
    registry = CollectorRegistry()
    fish = Counter("fish", "Fish seen.", ["colour"], registry=registry)
    fish.labels("red").inc(42.5)
    with page_of(registry) as target, prometheus_factory([target]) as prometheus:
        (sample,) = prometheus.wait_for('fish_total{colour="red"}')
        assert sample.value == 42.5
        assert sample.labels["colour"] == "red"
        assert sample.labels["instance"] == target
        assert 0 <= time.time() - sample.time_s < 60
        fish.labels("red").inc()
        prometheus.wait_for("sum(fish_total)", lambda found: [one.value for one in found] == [43.5])
        assert [one.value for one in prometheus.query("scalar(vector(2)) * 3")] == [6.0]
        assert prometheus.query("no_such_metric") == []
        with pytest.raises(ServerError, match=r"answered 400.*parse error"):
            prometheus.query("fish_total{")


def test_prometheus_keeps_exemplars_of_an_openmetrics_page(prometheus_factory: Callable[..., Prometheus]) -> None:
    registry = CollectorRegistry()
    trace_id = "0123456789abcdef0123456789abcdef"
    Counter("fish", "Fish seen.", registry=registry).inc(3, exemplar={"trace_id": trace_id})
    with (
        page_of(registry) as target,
        prometheus_factory([target], features=["exemplar-storage"]) as prometheus,
    ):
        prometheus.wait_for("fish_total")
        exemplars = wait_until(lambda: prometheus.query_exemplars("fish_total"), bool)
    assert [(one.labels, one.value) for one in exemplars] == [({"trace_id": trace_id}, 3.0)]
    assert exemplars[0].series_labels["__name__"] == "fish_total"


def test_a_server_that_does_not_start_is_reported_with_its_log(prometheus_factory: Callable[..., Prometheus]) -> None:
    broken = prometheus_factory(extra_arguments=["--no-such-flag"])
    started_s = time.monotonic()
    with pytest.raises(ServerError, match=r"(?s)prometheus ended at its start.*no-such-flag"), broken:
        pytest.fail("it started")
    assert time.monotonic() - started_s < 10
    assert not broken.running
    assert not broken.folder.exists()


def test_waiting_ends_in_time_and_shows_what_was_seen() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for a fish; last seen: 3"):
        wait_until(lambda: 3, lambda value: value == 4, 0.1, what="a fish")


# ---------------------------------------------------------------------------------------------------------- Collector


def test_collector_writes_down_what_came_over_grpc(collector: Collector) -> None:
    send_metrics(GrpcMetricExporter(endpoint=collector.grpc_endpoint, insecure=True))
    assert_metrics_arrived(collector)
    send_spans(GrpcSpanExporter(endpoint=collector.grpc_endpoint, insecure=True))
    assert_spans_arrived(collector)


def test_collector_writes_down_what_came_over_http(collector: Collector) -> None:
    assert collector.exported_metrics() == {}
    assert collector.exported_spans() == []
    send_metrics(HttpMetricExporter(endpoint=f"{collector.http_endpoint}/v1/metrics"))
    assert_metrics_arrived(collector)
    send_spans(HttpSpanExporter(endpoint=f"{collector.http_endpoint}/v1/traces"))
    assert_spans_arrived(collector)


def test_collector_shows_its_metrics_to_prometheus(
    collector: Collector, prometheus_factory: Callable[..., Prometheus]
) -> None:
    send_metrics(HttpMetricExporter(endpoint=f"{collector.http_endpoint}/v1/metrics"))
    collector.wait_for_metrics()
    with prometheus_factory([collector.prometheus_url]) as prometheus:
        (sample,) = prometheus.wait_for("fish_seen_total")
        assert (sample.value, sample.labels["colour"]) == (5.0, "red")
        (bucket,) = prometheus.wait_for('swim_duration_seconds_bucket{le="2.5"}')
        assert bucket.value == 2.0


@pytest.mark.parametrize("end", [Collector.stop, Collector.kill], ids=["stop", "kill"])
def test_collector_comes_back_at_the_same_addresses(collector: Collector, end: Callable[[Collector], None]) -> None:
    addresses = (collector.grpc_endpoint, collector.http_endpoint, collector.prometheus_url)
    send_metrics(GrpcMetricExporter(endpoint=collector.grpc_endpoint, insecure=True))
    collector.wait_for_metrics()
    first_pid = collector.pid
    end(collector)
    assert not collector.running
    assert not Path(f"/proc/{first_pid}").exists()
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", collector.port("grpc")))
    collector.start()
    collector.start()  # a second time does nothing
    assert collector.pid != first_pid
    assert addresses == (collector.grpc_endpoint, collector.http_endpoint, collector.prometheus_url)
    send_metrics(GrpcMetricExporter(endpoint=collector.grpc_endpoint, insecure=True), extra=2)
    key = metric_key("fish.seen", COLOURED)
    collector.wait_for_metrics(lambda found: found[key].value == 7)
    assert [point.value for point in collector.exported_points() if point.key == key] == [5, 7]


def test_a_server_whose_port_was_taken_moves_to_another(collector_factory: Callable[[], Collector]) -> None:
    collector = collector_factory()
    taken = collector.port("grpc")
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", taken))
        squatter.listen()
        with collector:
            assert collector.port("grpc") != taken
            assert collector.starts == 1
            send_metrics(GrpcMetricExporter(endpoint=collector.grpc_endpoint, insecure=True))
            assert_metrics_arrived(collector)


def test_a_collector_that_was_left_says_so(collector_factory: Callable[[], Collector]) -> None:
    with collector_factory() as collector:
        pid = collector.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ServerError, match="was left"):
        collector.exported_spans()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": ')
    assert read_json_lines(path) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("gauge", {"dataPoints": [{"asDouble": "NaN"}]}, "nan"),
        ("gauge", {"dataPoints": [{"asDouble": "-Infinity"}]}, "-inf"),
        ("gauge", {"dataPoints": [{"asInt": "9007199254740993"}]}, "9007199254740993"),
        ("sum", {"dataPoints": [{"asDouble": 0.5}], "aggregationTemporality": 1}, "0.5"),
        ("gauge", {"dataPoints": [{"flags": 1}]}, "None"),
    ],
)
def test_numbers_of_otlp_json_are_read_exactly(kind: str, data: dict[str, Any], expected: str) -> None:
    export = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "fish", kind: data}]}]}]}
    (point,) = parse_metrics(export)
    assert str(point.value) == expected


# ---------------------------------------------------------------------------------------------------- VictoriaMetrics


def test_victoria_metrics_answers_with_the_exact_values_that_were_sent(victoria_metrics: VictoriaMetrics) -> None:
    send_metrics(HttpMetricExporter(endpoint=victoria_metrics.otlp_metrics_url))
    (counter,) = victoria_metrics.wait_for("fish_seen_total")
    assert (counter.value, counter.labels["colour"], counter.labels["number"]) == (5.0, "red", "7")
    (total,) = victoria_metrics.query("swim_duration_seconds_sum")
    assert total.value == 6.25
    buckets = {one.labels["le"]: one.value for one in victoria_metrics.query("swim_duration_seconds_bucket")}
    assert {float(bound): count for bound, count in buckets.items()} == {0.5: 1, 1.0: 1, 2.5: 2, float("inf"): 3}


# ----------------------------------------------------------------------------------------------------------- promtool


@pytest.mark.parametrize(
    ("page", "exit_code", "said"),
    [(CLEAN_PAGE, 0, "^$"), (LINT_PAGE, 3, "no help text"), (BROKEN_PAGE, 1, "error while linting")],
    ids=["clean", "lint", "broken"],
)
@pytest.mark.usefixtures("promtool")
def test_promtool_tells_clean_from_lint_from_broken(page: str, exit_code: int, said: str) -> None:
    code, output = check_metrics(page)
    assert code == exit_code
    assert re.search(said, output), output


# ------------------------------------------------------------------------------------- missing servers and the script


def test_a_missing_server_skips_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, require_server: Callable[[str], Path]
) -> None:
    monkeypatch.setenv("AMPTALK_OTEL_TEST_CACHE", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    assert find_server("otelcol") is None
    with pytest.raises(pytest.skip.Exception, match=INSTALL_SCRIPT):
        require_server("otelcol")
    for set_ in ("true", "1"):
        monkeypatch.setenv("CI", set_)
        with pytest.raises(pytest.fail.Exception, match=INSTALL_SCRIPT):
            require_server("otelcol")
    with pytest.raises(ServerError, match=INSTALL_SCRIPT), Collector():
        pytest.fail("it started")
    with pytest.raises(ValueError, match="none of prometheus"):
        find_server("otelcoll")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return the install script as a module."""
    spec = importlib.util.spec_from_file_location("install_test_servers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_script_finds_the_mirrors_of_debian_itself(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.test/debian bookworm main\n"
        "deb-src http://source.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/usr/share/keyrings/some.gpg] http://one.test/debian bookworm main # why\n"
        "deb http://docker.test/linux/debian bookworm stable\n"
        "deb http://security.test/debian-security bookworm-security main\n"
    )
    (tmp_path / "sources.list.d/two.sources").write_text(
        "# first\nTypes: deb deb-src\n# inside\nURIs: http://two.test/debian\n http://three.test/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main\n contrib\n\n"
        "Types: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n"
        "Types: deb\nURIs: http://one.test/debian\nSuites: trixie\nComponents: main\n"
    )
    (tmp_path / "sources.list.d/old.list.disabled").write_text("deb http://disabled.test/debian bookworm main\n")
    assert script.debian_mirrors(tmp_path) == [f"http://{name}.test/debian" for name in ("one", "two", "three")]


def test_the_script_and_the_tests_mean_the_same_cache_folder(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "amptalk-otel-tests/bin/promtool"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AMPTALK_OTEL_TEST_CACHE", raising=False)
    assert find_server("promtool") == program == script.cache_folder(None, os.environ) / "bin/promtool"
    monkeypatch.setenv("AMPTALK_OTEL_TEST_CACHE", str(program.parents[1]))
    assert find_server("promtool") == program == script.cache_folder(None, os.environ) / "bin/promtool"


def run_script(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env=env, check=False
    )


def test_a_second_run_of_the_script_only_says_where_things_are(require_server: Callable[[str], Path]) -> None:
    path = require_server("promtool")
    done = run_script("--only", "promtool")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"promtool \S+: {re.escape(str(path))}\n", done.stdout)


def test_the_script_says_in_one_sentence_what_it_cannot_do(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    done = run_script("--cache", cache, "--only", "prometheus,collector", PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Can't install prometheus: the command apt-get is missing: Debian packages need a Debian system.",
        "Can't install collector: the command go, which builds the Collector, is missing.",
    ]
    done = run_script("--only", "promtool,grafana")
    assert done.returncode == 2
    assert "'grafana' is none of prometheus, promtool, victoria-metrics, collector" in done.stderr


def test_fetch_reports_who_did_not_answer() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/"
        assert not answers(url)
        with pytest.raises(ServerError, match="did not answer"):
            fetch(url)
