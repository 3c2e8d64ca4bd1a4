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
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, make_wsgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from amptalk_otel._http import Limits
from amptalk_otel._server import MetricsServer

TIMEOUT_S = 20.0
openmetrics: Any = parser  # untyped
generate_openmetrics: Any = exposition.generate_latest  # untyped
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


class RegistryPage:
    """What prometheus_client makes of a registry, in small pieces."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.asked: list[tuple[bool, frozenset[str]]] = []

    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:
        self.asked.append((openmetrics, names))
        registry: Any = self.registry.restricted_registry(names) if names else self.registry
        page: bytes = (generate_openmetrics if openmetrics else generate_latest)(registry)
        return [page[start : start + 1000] for start in range(0, len(page), 1000)]


@contextmanager
def serving(
    registry: CollectorRegistry, host: str = "localhost", port: int = 0, page: Any = None
) -> Iterator[MetricsServer]:
    server = MetricsServer(page or RegistryPage(registry), host, port)
    try:
        yield server
    finally:
        assert server.close(TIMEOUT_S)


def get(url: str, method: str = "GET", **headers: str) -> tuple[Message, bytes]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=sent, method=method)
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
    assert headers["Content-Length"] == str(len(body))
    assert gzip.decompress(body) == plain


ACCEPTS = [
    "",
    "*/*",
    "text/plain",
    "text/plain;version=0.0.4",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "text/plain;version=1.0.0",
    "application/openmetrics-text",
    "application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
]


QUERIES = ["", "?name[]=answer", "?name[]=answer&name[]=messages_total", "?name[]="]


@pytest.mark.parametrize("accept", ACCEPTS)
def test_an_answer_is_that_of_prometheus_client(registry: CollectorRegistry, accept: str) -> None:
    with serving(registry) as server:
        for query, encoding in product(QUERIES, ["", "gzip", "deflate, GZIP;q=0.5", "identity"]):
            told: list[tuple[str, str]] = []
            environ = {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/metrics",
                "QUERY_STRING": query.removeprefix("?"),
                "HTTP_ACCEPT": accept,
                "HTTP_ACCEPT_ENCODING": encoding,
            }
            app = make_wsgi_app(registry)
            theirs = b"".join(app(environ, lambda _status, headers, told=told: told.extend(headers)))
            headers, ours = get(server.url + query, Accept=accept, Accept_Encoding=encoding)
            expected = dict(told)
            assert {name: headers[name] for name in expected} == expected
            assert headers["Content-Encoding"] == expected.get("Content-Encoding")
            if "Content-Encoding" in expected:
                ours, theirs = gzip.decompress(ours), gzip.decompress(theirs)
            assert ours == theirs


@pytest.mark.parametrize("scheme", ["dots", "values"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_names_are_never_rewritten(registry: CollectorRegistry, kind: str, scheme: str) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, Accept=f"{kind};version=1.0.0;escaping={scheme}")
    assert headers["Content-Type"].startswith(kind)
    assert scheme not in headers["Content-Type"]
    assert b"\nmessages_total{" in body


def test_a_version_that_is_no_number_is_no_error(registry: CollectorRegistry) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, Accept="text/plain;version=latest")
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b"answer 42.0" in body


@pytest.mark.parametrize("version", ["2.0.0", "99.5.0", "1.0.0.0", "1.1"])
def test_openmetrics_is_written_in_its_one_version_whichever_is_asked_for(
    registry: CollectorRegistry, version: str
) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, Accept=f"application/openmetrics-text;version={version}")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("quality", ["q=0", "q=0.0", " q=0.000 ", "Q = 0", "q=0;x=y"])
def test_what_a_client_does_not_want_it_does_not_get(registry: CollectorRegistry, quality: str) -> None:
    with serving(registry) as server:
        accept = f"application/openmetrics-text;version=1.0.0;{quality}, text/plain"
        headers, _ = get(server.url, Accept=accept, Accept_Encoding=f"gzip;{quality}, identity")
        assert headers["Content-Type"].startswith("text/plain; version=")
        assert headers["Content-Encoding"] is None
        accept = "application/openmetrics-text;version=1.0.0;q=0.01"
        headers, _ = get(server.url, Accept=accept, Accept_Encoding="gzip;q=0.01, *;q=0")
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert headers["Content-Encoding"] == "gzip"


def test_the_names_that_are_asked_for_reach_the_page(registry: CollectorRegistry) -> None:
    page = RegistryPage(registry)
    with serving(registry, page=page) as server:
        _, body = get(f"{server.url}?name[]=answer&other=1", Accept=OPENMETRICS)
        get(server.url)
    assert page.asked == [(True, frozenset({"answer"})), (False, frozenset())]
    assert b"messages" not in body


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_head_is_get_without_the_page(registry: CollectorRegistry, encoding: str) -> None:
    with serving(registry) as server:
        headers, body = get(server.url, method="HEAD", Accept=OPENMETRICS, Accept_Encoding=encoding)
        expected, page = get(server.url, Accept=OPENMETRICS, Accept_Encoding=encoding)
    assert body == b""
    names = ("Content-Type", "Content-Length", "Content-Encoding")
    assert [headers[name] for name in names] == [expected[name] for name in names]
    assert headers["Content-Length"] == str(len(page))


def test_other_methods_are_told_what_there_is(registry: CollectorRegistry) -> None:
    page = RegistryPage(registry)
    with serving(registry, page=page) as server:
        headers, body = get(server.url, method="OPTIONS")
        assert (headers["Allow"], body) == ("OPTIONS,GET,HEAD", b"")
        with pytest.raises(urllib.request.HTTPError) as caught:
            get(server.url, method="DELETE")
        with caught.value as response:
            assert (response.code, response.headers["Allow"]) == (405, "OPTIONS,GET,HEAD")
            assert response.read() == b"# HTTP 405 Method Not Allowed: DELETE; use OPTIONS or GET\n"
    assert page.asked == []


def test_a_browser_gets_no_page_for_an_icon(registry: CollectorRegistry) -> None:
    page = RegistryPage(registry)
    with serving(registry, page=page) as server:
        _, body = get(f"http://localhost:{port_of(server)}/favicon.ico")
    assert (body, page.asked) == (b"", [])


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


@pytest.mark.parametrize("host", ["0.0.0.0", "0", *(["::"] if has_ipv6() else [])])
def test_all_addresses_of_the_machine_are_shown_as_one_that_can_be_asked(
    registry: CollectorRegistry, host: str
) -> None:
    with serving(registry, host) as server:
        assert server.url == f"http://localhost:{port_of(server)}/metrics"
        assert b"answer 42.0" in get(server.url)[1]


def test_nothing_is_printed_for_a_request(registry: CollectorRegistry, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(registry) as server:
        get(server.url)
        with pytest.raises(OSError, match=r"HTTP Error|closed|reset|Bad"):
            get(f"http://localhost:{port_of(server)}/metrics", Host="a", X_Header="x" * 70_000)
    assert capfd.readouterr() == ("", "")


# -- clients that get in each other's way --------------------------------------------------------------


def test_scrapes_of_all_kinds_at_once_each_get_a_complete_page(registry: CollectorRegistry) -> None:
    with serving(registry) as server, ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8, timeout=TIMEOUT_S)

        def scrape(number: int) -> list[bytes]:
            together.wait()
            accept = OPENMETRICS if number % 2 else "text/plain"
            if number % 3:
                return [get(server.url, Accept=accept)[1] for _ in range(10)]
            return [gzip.decompress(get(server.url, Accept=accept, Accept_Encoding="gzip")[1]) for _ in range(10)]

        pages = [task.result(60) for task in [pool.submit(scrape, number) for number in range(8)]]
    page = RegistryPage(registry)
    for number, found in enumerate(pages):
        assert found == [b"".join(page.pages(bool(number % 2)))] * 10


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives up no client within the time of a test."""
    limits = Limits(head_s=3 * TIMEOUT_S, write_s=3 * TIMEOUT_S)
    monkeypatch.setattr("amptalk_otel._server.LIMITS", limits)


def test_a_client_that_says_nothing_does_not_hold_up_the_next(registry: CollectorRegistry, patient: None) -> None:
    with serving(registry) as server, socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as silent:
        silent.sendall(b"GET /metrics HTT")
        _, body = get(server.url)
        assert b"answer 42.0" in body
    wait_for_no_thread_named("metrics-request")


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
        wait_for_no_thread_named("metrics-request")
    assert capfd.readouterr() == ("", "")


def test_a_client_that_stops_reading_is_given_up_without_a_word_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()
    Gauge("padding", "x" * 20_000_000, registry=registry)
    monkeypatch.setattr("amptalk_otel._server.LIMITS", Limits(write_s=0.05))
    with (
        serving(registry) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as slow,
    ):
        slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert slow.recv(1) == b"H"
        wait_for_no_thread_named("metrics-request")
    assert capfd.readouterr() == ("", "")


def wait_for_no_thread_named(part: str) -> None:
    """The server's threads for single requests end by themselves, once their client is gone."""
    for thread in threading.enumerate():
        if part in thread.name:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


# -- failures ------------------------------------------------------------------------------------------


class Broken:
    """A page that fails while `broken`."""

    broken = True

    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:
        if self.broken:
            raise RuntimeError("s3cret")
        return [b"mended 1.0\n"]


def test_a_page_that_fails_costs_one_log_record_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], lenient_guard: None
) -> None:
    page = Broken()
    with serving(CollectorRegistry(), page=page) as server:
        for method in ("GET", "HEAD", "GET"):
            with pytest.raises(urllib.request.HTTPError) as caught:
                get(server.url, method=method)
            with caught.value as response:
                text = b"The metrics could not be read; the program's log says where.\n"
                assert (response.code, response.read()) == (500, text if method == "GET" else b"")
        page.broken = False
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
            MetricsServer(RegistryPage(registry), "localhost", port_of(server))
        assert threading.active_count() == before + 1


def test_a_host_that_does_not_exist_is_an_error_at_once(registry: CollectorRegistry) -> None:
    with pytest.raises(OSError, match=r"\S"):
        MetricsServer(RegistryPage(registry), "256.256.256.256.", 0)


def test_close_frees_the_port_even_right_after_a_scrape(registry: CollectorRegistry) -> None:
    with serving(registry) as first:
        port = port_of(first)
        # The server ends an HTTP/1.0 connection, so its end stays in TIME_WAIT.
        get(first.url)
    with serving(registry, port=port) as second:
        assert port_of(second) == port
        assert b"answer 42.0" in get(second.url)[1]


def test_nothing_answers_after_close(registry: CollectorRegistry) -> None:
    server = MetricsServer(RegistryPage(registry), "localhost", 0)
    assert server.close(TIMEOUT_S) is True
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S)
    assert [thread for thread in threading.enumerate() if thread.name == "amptalk-otel-metrics"] == []


def test_close_is_harmless_the_second_time(registry: CollectorRegistry) -> None:
    server = MetricsServer(RegistryPage(registry), "localhost", 0)
    assert (server.close(TIMEOUT_S), server.close(TIMEOUT_S)) == (True, True)


def test_close_does_not_wait_for_a_client_that_says_nothing(registry: CollectorRegistry, patient: None) -> None:
    server = MetricsServer(RegistryPage(registry), "localhost", 0)
    with socket.create_connection(("127.0.0.1", port_of(server)), TIMEOUT_S) as silent:
        silent.sendall(b"GET")
        assert server.close(TIMEOUT_S) is True
    wait_for_no_thread_named("metrics-request")


def test_the_server_runs_in_a_daemon_thread(registry: CollectorRegistry) -> None:
    with serving(registry):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "amptalk-otel-metrics"]
        assert thread.daemon
