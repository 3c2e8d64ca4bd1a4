"""Exports of ours: what is logged of them, how they end, and what they keep to themselves."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import opentelemetry.exporter.otlp.proto.grpc.exporter  # noqa: F401 - gives its logger a filter when it is imported
import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricsData
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from amptalk_otel import Config, _exports, _pipeline, _traces
from amptalk_otel._exports import _LOGGERS, Exports, SpansOut
from amptalk_otel._otlp import metric_exporter, span_exporter
from amptalk_otel._pipeline import Pipeline
from tests.faults.collectors import OK, answering, read_request
from tests.faults.trial import Strikes
from tests.unit.test_pipeline import TIMEOUT_S, count, http_collector, refusing_port

SECRET = "s3cret"
HOUR_S = 3600.0
PROTOCOLS = ["http/protobuf", "grpc"]


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.fixture(autouse=True)
def exports_end() -> Iterator[None]:
    """What was left to a thread has failed before the next test looks at the log: its collector is gone."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("Otel"):
            thread.join(TIMEOUT_S)


def pushing(port: int, protocol: str = "http/protobuf", **changes: Any) -> Config:
    return Config(
        metrics_exporters=("otlp",),
        traces_exporters=("otlp",),
        otlp_protocol=protocol,
        otlp_endpoint=f"http://user:{SECRET}-password@127.0.0.1:{port}",
        otlp_headers={"authorization": f"{SECRET}-header"},
        metric_export_interval_s=HOUR_S,
        otlp_timeout_s=30.0,
    ).with_changes(**changes)


def make_some(pipeline: Pipeline) -> None:
    """A value and, where there are spans, a span."""
    count(pipeline, 1)
    if pipeline.config.traces_exporters == ("none",):
        return
    assert pipeline.tracer_provider is not None
    pipeline.tracer_provider.get_tracer("test").start_span("one").end()


# -- the log -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_collector_that_is_down_costs_one_record_for_each_signal_and_no_text(
    protocol: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    with refusing_port() as port:
        pipeline = Pipeline(pushing(port, protocol, metric_export_interval_s=0.05, otlp_timeout_s=1.5))
        for _ in range(2):
            make_some(pipeline)
            pipeline.flush(TIMEOUT_S)
        pipeline.shutdown(TIMEOUT_S)
    told = [record.getMessage() for record in everything_logged.records if record.levelno >= logging.WARNING]
    assert sorted(message.split(" (")[0] for message in told) == ["metrics are not pushed", "spans are not pushed"]
    assert all("Error)" in message or "UNAVAILABLE)" in message for message in told)
    assert SECRET not in everything_logged.text


def test_what_a_collector_answers_is_not_logged_but_its_status_is(
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    def refuse(client: Any) -> None:
        read_request(client)
        client.sendall(f"HTTP/1.1 401 {SECRET}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        client.close()

    with answering(refuse, Strikes()) as port:
        pipeline = Pipeline(pushing(port))
        count(pipeline, 1)
        pipeline.shutdown(TIMEOUT_S)
    assert [record.getMessage() for record in everything_logged.records if record.levelno >= logging.WARNING] == [
        "metrics are not pushed (HTTP status 401); the next push is tried as usual, and the program is not affected"
    ]
    assert SECRET not in everything_logged.text


@pytest.mark.parametrize("order", ["program's first", "ours first"])
def test_neither_hides_what_the_other_logs(order: str, caplog: pytest.LogCaptureFixture) -> None:
    """OpenTelemetry drops what was logged just now already, and does not ask by whom."""
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")
    for known in logger.filters:
        vars(known).pop("last_log", None)

    def fail() -> None:
        logger.error("Failed to export %s", "everything")

    def fail_for_us() -> None:
        with Exports("metrics").under_way():
            fail()

    first, second = (fail, fail_for_us) if order == "program's first" else (fail_for_us, fail)
    first()
    second()
    assert sorted(record.name for record in caplog.records) == ["amptalk_otel", logger.name]


def answering_with(status: int, asked: list[bytes], *headers: str) -> Callable[[Any], None]:
    """A collector that answers each push in the same way."""
    lines = "".join(f"{header}\r\n" for header in headers)

    def answer(client: Any) -> None:
        asked.append(read_request(client)[0])
        client.sendall(f"HTTP/1.1 {status} Status\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        client.close()

    return answer


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_collector_that_is_elsewhere_is_not_followed_and_told(
    status: int, everything_logged: pytest.LogCaptureFixture
) -> None:
    asked: list[bytes] = []
    followed: list[bytes] = []
    with (
        answering(answering_with(200, followed), Strikes()) as elsewhere,
        answering(answering_with(status, asked, f"Location: http://127.0.0.1:{elsewhere}/"), Strikes()) as port,
    ):
        pipeline = Pipeline(pushing(port))
        make_some(pipeline)
        assert pipeline.flush(TIMEOUT_S) is False
        assert pipeline.shutdown(TIMEOUT_S) is False
    assert len(asked) == 3  # metrics twice, spans once
    assert followed == []
    told = [record.getMessage() for record in everything_logged.records if record.levelno >= logging.WARNING]
    assert sorted(message.partition(";")[0] for message in told) == [
        "metrics are not pushed (RedirectedError)",
        "spans are not pushed (RedirectedError)",
    ]
    assert SECRET not in everything_logged.text


@pytest.mark.parametrize("userinfo", ["", "user:from-url@"])
def test_nothing_of_the_users_netrc_is_sent(userinfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with http_collector() as collector:
        pipeline = Pipeline(
            Config(
                metrics_exporters=("otlp",),
                otlp_endpoint=f"http://{userinfo}127.0.0.1:{collector.port}",
                otlp_headers={"authorization": "Bearer ours"},
            )
        )
        count(pipeline, 1)
        assert pipeline.shutdown(TIMEOUT_S)
    (headers,) = collector.headers
    of_the_url = f"Basic {base64.b64encode(b'user:from-url').decode()}"
    assert headers["authorization"] == (of_the_url if userinfo else "Bearer ours")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", [metric_exporter, span_exporter])
def test_headers_of_the_environment_are_neither_logged_nor_sent(
    make: Callable[[Config], Any],
    protocol: str,
    everything_logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"Bearer {SECRET}-bad,x-other={SECRET}-other")
    exporter = make(pushing(1, protocol, otlp_headers={}))
    assert SECRET not in everything_logged.text
    assert SECRET not in str(getattr(exporter, "_headers", ""))
    exporter.shutdown()


def test_only_the_headers_of_the_settings_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-other={SECRET}")
    with http_collector() as collector:
        endpoint = f"http://127.0.0.1:{collector.port}"
        config = Config(metrics_exporters=("otlp",), otlp_endpoint=endpoint, otlp_headers={"X-Ours": "1"})
        pipeline = Pipeline(config)
        count(pipeline, 1)
        assert pipeline.shutdown(TIMEOUT_S)
    (headers,) = collector.headers
    assert headers["x-ours"] == "1"
    assert "x-other" not in headers


def test_what_the_programs_own_exporters_log_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    begun, done = threading.Event(), threading.Event()

    def export() -> None:
        with Exports("metrics").under_way():
            begun.set()
            done.wait(TIMEOUT_S)

    thread = threading.Thread(target=export)
    thread.start()
    assert begun.wait(TIMEOUT_S)
    with refusing_port() as port:
        own = OTLPMetricExporter(endpoint=f"http://127.0.0.1:{port}/v1/metrics", timeout=0.1)
        own.export(MetricsData([]))
        own.shutdown()
    assert [record.name for record in caplog.records] == ["opentelemetry.exporter.otlp.proto.http.metric_exporter"]
    done.set()
    thread.join(TIMEOUT_S)


def filters() -> dict[str, list[Any]]:
    return {name: list(logging.getLogger(name).filters) for name in _LOGGERS}


def filters_without_ours() -> dict[str, list[Any]]:
    """Those there are once the exports have ended that an earlier test left to their threads."""
    until = time.monotonic() + 3 * TIMEOUT_S
    while _exports._under_way and time.monotonic() < until:
        time.sleep(0.05)
    with _exports._lock:  # whoever counts down to 0 is still taking the filters off
        assert not _exports._under_way
        return filters()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_loggers_are_as_before_once_the_last_pipeline_has_ended(protocol: str) -> None:
    before = filters_without_ours()
    with refusing_port() as port:
        first, last = (Pipeline(pushing(port, protocol, otlp_timeout_s=0.5)) for _ in range(2))
        make_some(first)
        first.shutdown(TIMEOUT_S)
        with Exports("metrics").under_way():
            assert all(len(now) == len(before[name]) + 1 for name, now in filters().items())
        last.shutdown(TIMEOUT_S)
    assert filters() == before


def test_what_hangs_beyond_the_end_is_not_logged_either(everything_logged: pytest.LogCaptureFixture) -> None:
    before, go_on = filters_without_ours(), threading.Event()

    def hang(client: Any) -> None:
        go_on.wait(TIMEOUT_S)
        client.close()

    with answering(hang, Strikes()) as port:
        pipeline = Pipeline(pushing(port, traces_exporters=("none",), otlp_timeout_s=0.5))
        make_some(pipeline)
        assert pipeline.shutdown(0.1) is False
        assert filters() != before
        go_on.set()
        for thread in threading.enumerate():
            if thread.name in ("amptalk-otel-deadline", "OtelPeriodicExportingMetricReader"):
                thread.join(TIMEOUT_S)
    assert filters() == before
    assert {record.name for record in everything_logged.records if record.levelno >= logging.WARNING} <= {
        "amptalk_otel"
    }


def test_a_thread_that_logs_while_the_filter_comes_off_misses_none_of_the_programs() -> None:
    former = filters_without_ours()[_LOGGERS[0]]
    logger, asked = logging.getLogger(_LOGGERS[0]), []

    def let_it_end(_record: logging.LogRecord) -> bool:
        _exports._listen(-1)
        return True

    def own(record: logging.LogRecord) -> bool:
        asked.append(record.getMessage())
        return True

    _exports._listen(1)
    assert len(logger.filters) == len(former) + 1
    logger.addFilter(let_it_end)
    logger.addFilter(own)
    logger.warning("of the program")
    assert asked == ["of the program"]
    assert logger.filters == [*former, let_it_end, own]
    logger.filters = former


# -- the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shutdown_keeps_its_time_with_a_black_hole(protocol: str) -> None:
    with answering(lambda _client: time.sleep(20), Strikes()) as port:
        pipeline = Pipeline(pushing(port, protocol))
        make_some(pipeline)
        began = time.monotonic()
        assert pipeline.shutdown(0.5) is False
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_what_could_not_be_pushed_is_told_by_flush_and_shutdown(signal: str, protocol: str) -> None:
    other = "traces_exporters" if signal == "metrics" else "metrics_exporters"
    with refusing_port() as port:
        pipeline = Pipeline(pushing(port, protocol, otlp_timeout_s=0.2).with_changes(**{other: ("none",)}))
        make_some(pipeline)
        assert pipeline.flush(TIMEOUT_S) is False
        make_some(pipeline)
        assert pipeline.shutdown(TIMEOUT_S) is False


def test_a_push_that_succeeds_at_the_second_attempt_has_succeeded() -> None:
    later = b"HTTP/1.1 503 Later\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    taken: list[bytes] = []

    def answer(client: Any) -> None:
        while True:
            taken.append(read_request(client)[0])
            client.sendall(later if len(taken) == 1 else OK)

    with answering(answer, Strikes()) as port:
        pipeline = Pipeline(pushing(port, traces_exporters=("none",)))
        make_some(pipeline)
        assert pipeline.flush(TIMEOUT_S) is True
        assert len(taken) == 2
        assert pipeline.shutdown(TIMEOUT_S) is True


def test_an_exporter_that_hangs_does_not_cost_the_others_their_last_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(_pipeline, "ConsoleMetricExporter", lambda: ConsoleMetricExporter(out))
    monkeypatch.setattr(_traces, "ConsoleSpanExporter", lambda: ConsoleSpanExporter(out=out))
    with answering(lambda _client: time.sleep(20), Strikes()) as port:
        exporters = ("otlp", "console")
        pipeline = Pipeline(pushing(port, metrics_exporters=exporters, traces_exporters=exporters))
        make_some(pipeline)
        assert pipeline.shutdown(1.0) is False
    printed = out.getvalue()
    assert '"name": "things"' in printed
    assert '"name": "one"' in printed


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pause_between_attempts_ends_with_the_program(protocol: str) -> None:
    """A collector that is up again gets the last values, though the exporter would have waited for seconds."""
    exports, waited = Exports("metrics"), threading.Event()
    exporter: Any = metric_exporter(pushing(1, protocol))
    exports.take(exporter)
    owner = exporter if protocol == "grpc" else getattr(exporter, "_client", exporter)
    name = "_shutdown_event" if hasattr(owner, "_shutdown_event") else "_shutdown_in_progress"
    waits = getattr(owner, name)
    outcome: list[bool] = []

    def wait() -> None:
        outcome.append(waits.wait(60.0))
        waited.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not waited.wait(0.05)
    exports.hurry()
    assert waited.wait(TIMEOUT_S)
    assert outcome == [False], "it was told to go on, not to give up"
    assert waits.wait(60.0) is False, "and waits for a moment only from then on"
    exporter.shutdown()
    assert waits.is_set()


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_last_values_arrive_at_a_collector_that_is_up_again(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    is_up, refused = threading.Event(), threading.Event()
    taken: list[bytes] = []

    def answer(client: Any) -> None:
        while True:
            request, _body = read_request(client)
            if is_up.is_set():
                taken.append(request)
                client.sendall(OK)
            else:
                client.sendall(b"HTTP/1.1 503 Later\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n")
                refused.set()

    with answering(answer, Strikes()) as port:
        other = "traces_exporters" if signal == "metrics" else "metrics_exporters"
        pipeline = Pipeline(pushing(port, metric_export_interval_s=0.05).with_changes(**{other: ("none",)}))
        make_some(pipeline)
        assert refused.wait(TIMEOUT_S)
        is_up.set()
        assert pipeline.shutdown(5.0) is True, "it goes on waiting for ten seconds"
    assert f"POST /v1/{signal} HTTP/1.1".encode() in taken


def test_exporters_share_the_time_where_there_are_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    limits_ms: list[float] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert _pipeline._within(0.9, *[limits_ms.append] * 3)
    assert [limit <= most for limit, most in zip(limits_ms, (300.0, 450.0, 900.0), strict=True)] == [True] * 3


def test_the_providers_are_ended_with_their_exporters(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(Config(metrics_exporters=("none",)))
    assert pipeline.shutdown(TIMEOUT_S)
    pipeline.meter_provider.shutdown()
    assert caplog.messages == ["shutdown can only be called once"]


def test_spans_end_as_well_where_the_sdk_is_laid_out_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    spans_out = SpansOut(ConsoleSpanExporter())
    laid_out: Any = vars(spans_out).pop("_batch_processor")
    monkeypatch.setattr(BatchSpanProcessor, "shutdown", lambda _self: ended.append("once"))
    spans_out.end(1000.0)
    assert ended == ["once"]
    laid_out.shutdown()
