"""The metrics page: what it says to whom, and that no client can hurt another, or the program."""

from __future__ import annotations

import gzip
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel._server import MetricsServer

TIMEOUT_S = 20.0
openmetrics: Any = parser  # untyped
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    Counter("messages", "Messages.", ["kind"], registry=registry).labels('a "b"\n').inc(3)
    return registry


@contextmanager
def serving(registry: CollectorRegistry, host: str = "localhost", port: int = 0) -> Iterator[MetricsServer]:
    server = MetricsServer(registry, host, port)
    try:
        yield server
    finally:
        assert server.close(TIMEOUT_S)


def get(url: str, **headers: str) -> tuple[Message, bytes]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        body: bytes = response.read()
        return response.headers, body


def port_of(server: MetricsServer) -> int:
    port = urlsplit(server.url).port
    assert port
    return port


def values(families: Iterable[Metric]) -> dict[str, float]:
    return {sample.name: sample.value for family in families for sample in family.samples}


# -- what it says --------------------------------------------------------------------------------------


def test_the_page_is_prometheus_text(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        headers, body = get(server.url)
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Content-Encoding"] is None
    found = values(text_string_to_metric_families(body.decode()))
    assert (found["answer"], found["messages_total"]) == (42.0, 3.0)


def test_a_client_that_accepts_openmetrics_gets_it(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, Accept=OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    found = values(openmetrics.text_string_to_metric_families(body.decode()))
    assert (found["answer"], found["messages_total"]) == (42.0, 3.0)


def test_a_client_that_accepts_gzip_gets_it(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, Accept_Encoding="gzip")
        _, plain = get(server.url)
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == plain


def test_the_url_is_that_of_the_port_which_was_bound(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        assert server.url == f"http://localhost:{port_of(server)}/metrics"
        assert port_of(server) > 0


def test_localhost_is_127_0_0_1(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        _, body = get(f"http://127.0.0.1:{port_of(server)}/metrics")
    assert b"answer 42.0" in body


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_served_and_shown_in_brackets(registry: CollectorRegistry) -> None:
    with serving(registry, "::1") as server:
        assert server.url.startswith("http://[::1]:")
        _, body = get(server.url)
    assert b"answer 42.0" in body


def test_nothing_is_printed_for_a_request(registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(registry) as server:
        get(server.url)
        with pytest.raises(OSError, match=r"HTTP Error|closed|reset|Bad"):
            get(f"http://localhost:{port_of(server)}/metrics", Host="a", X_Header="x" * 70_000)
    assert capfd.readouterr() == ("", "")


# -- clients that get in each other's way --------------------------------------------------------------


def test_concurrent_scrapes_each_get_a_complete_page() -> None:
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    names = [f"thing_{number}" for number in range(20)]
    for name in names:
        meter.create_counter(name).add(7, {"kind": "a"})
    with serving(registry) as server, ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8, timeout=TIMEOUT_S)

        def scrape(number: int) -> list[bytes]:
            together.wait()
            accept = OPENMETRICS if number % 2 else "text/plain"
            return [get(server.url, Accept=accept)[1] for _ in range(20)]

        pages = [page for task in [pool.submit(scrape, number) for number in range(8)] for page in task.result(60)]
    provider.shutdown()
    assert len(pages) == 160
    for page in pages:
        text = page.decode()
        types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
        assert sorted(types) == sorted(set(types))
        if text.endswith("# EOF\n"):
            found = values(openmetrics.text_string_to_metric_families(text))
        else:
            found = values(text_string_to_metric_families(text))
        assert {name: found[f"{name}_total"] for name in names} == dict.fromkeys(names, 7.0)


class Crowded:
    """A collector that notices company: each collection gives another half a second to come in."""

    def __init__(self) -> None:
        self.inside = 0
        self.most_inside = 0
        self.company = threading.Event()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        if self.inside > 1:
            self.company.set()
        self.company.wait(0.5)
        self.inside -= 1
        yield GaugeMetricFamily("crowded", "Nothing.", 0)


def test_one_page_is_made_at_a_time() -> None:
    registry = CollectorRegistry(auto_describe=False)
    collector = Crowded()
    registry.register(collector)
    with serving(registry) as server, ThreadPoolExecutor(2) as pool:
        pages = [pool.submit(get, server.url) for _ in range(2)]
        assert [b"crowded 0.0" in page.result(60)[1] for page in pages] == [True, True]
    assert collector.most_inside == 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives up no client within the time of a test."""
    monkeypatch.setattr("amptalk_otel._server._QuietHandler.timeout", 3 * TIMEOUT_S)


def test_a_client_that_says_nothing_does_not_hold_up_the_next(registry: CollectorRegistry, patient: None) -> None:
    with serving(registry) as server, socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as silent:
        silent.sendall(b"GET /metrics HTT")
        _, body = get(server.url)
        assert b"answer 42.0" in body
    wait_for_no_thread_named("process_request")


def test_a_client_that_does_not_read_does_not_hold_up_the_next(
    capfd: pytest.CaptureFixture[str], patient: None
) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("padding", "Enough to fill every buffer.", ["text"], registry=registry)
    for number in range(2000):
        gauge.labels(f"{number:05}" + "x" * 10_000)
    with serving(registry) as server:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(TIMEOUT_S)
        slow.connect(("127.0.0.1", port_of(server)))
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.recv(1) == b"H"  # its page is being written
        _, body = get(server.url)
        assert body.count(b"\npadding{") == 2000
        slow.close()  # with most of its page unread
        wait_for_no_thread_named("process_request")
    assert capfd.readouterr() == ("", "")


def test_a_client_that_stops_reading_is_given_up_without_a_word_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()
    Gauge("padding", "x" * 20_000_000, registry=registry)
    monkeypatch.setattr("amptalk_otel._server._QuietHandler.timeout", 0.05)
    with (
        serving(registry) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as slow,
    ):
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.recv(1) == b"H"
        wait_for_no_thread_named("process_request")
    assert capfd.readouterr() == ("", "")


def wait_for_no_thread_named(part: str) -> None:
    """The server's threads for single requests end by themselves, once their client is gone."""
    for thread in threading.enumerate():
        if part in thread.name:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


# -- failures ------------------------------------------------------------------------------------------


class Broken:
    """A collector that fails while `broken`."""

    broken = True

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self.broken:
            raise RuntimeError("s3cret")
        yield GaugeMetricFamily("mended", "Works again.", 1)


def test_a_page_that_fails_costs_one_log_record_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], lenient_guard: None
) -> None:
    registry = CollectorRegistry(auto_describe=False)
    collector = Broken()
    registry.register(collector)
    with serving(registry) as server:
        for _ in range(2):
            with pytest.raises(urllib.request.HTTPError) as caught:
                get(server.url)
            with caught.value as response:
                assert (response.code, response.read()) == (
                    500,
                    b"The metrics could not be read; the program's log says where.\n",
                )
        collector.broken = False
        assert b"mended 1.0" in get(server.url)[1]
    (message,) = caplog.messages
    assert message.startswith("serving the metrics page was skipped (RuntimeError at ")
    assert "s3cret" not in message
    assert capfd.readouterr() == ("", "")


# -- the port ------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error_at_once(registry: CollectorRegistry) -> None:
    before = threading.active_count()
    with serving(registry) as server:
        with pytest.raises(OSError, match="in use"):
            MetricsServer(registry, "localhost", port_of(server))
        assert threading.active_count() == before + 1


def test_a_host_that_does_not_exist_is_an_error_at_once(registry: CollectorRegistry) -> None:
    with pytest.raises(OSError, match=r"\S"):
        MetricsServer(registry, "256.256.256.256.", 0)


def test_close_frees_the_port_even_right_after_a_scrape(registry: CollectorRegistry) -> None:
    with serving(registry) as first:
        port = port_of(first)
        # The server ends an HTTP/1.0 connection, so its end stays in TIME_WAIT.
        get(first.url)
    with serving(registry, port=port) as second:
        assert port_of(second) == port
        assert b"answer 42.0" in get(second.url)[1]


def test_nothing_answers_after_close(registry: CollectorRegistry) -> None:
    server = MetricsServer(registry, "localhost", 0)
    assert server.close(TIMEOUT_S) is True
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S)
    assert [thread for thread in threading.enumerate() if thread.name == "amptalk-otel-metrics"] == []


def test_close_is_harmless_the_second_time(registry: CollectorRegistry) -> None:
    server = MetricsServer(registry, "localhost", 0)
    assert (server.close(TIMEOUT_S), server.close(TIMEOUT_S)) == (True, True)


def test_close_does_not_wait_for_a_client_that_says_nothing(registry: CollectorRegistry, patient: None) -> None:
    server = MetricsServer(registry, "localhost", 0)
    with socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as silent:
        silent.sendall(b"GET")
        assert server.close(TIMEOUT_S) is True
    wait_for_no_thread_named("process_request")


def test_the_server_runs_in_a_daemon_thread(registry: CollectorRegistry) -> None:
    with serving(registry):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "amptalk-otel-metrics"]
        assert thread.daemon
