"""The endpoint as a service: what requests it takes, what it spends on clients, and what it tells nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from amptalk_otel import _front
from amptalk_otel._http import Limits
from amptalk_otel._server import MetricsServer
from tests.wire_http import TIMEOUT_S, Reply, connect, exchange, receive_reply, replies, until_closed

Serve = Callable[..., MetricsServer]
CLOSE = b"Host: a\r\nConnection: close\r\n\r\n"
NO_WAIT = 0.3  # in which nothing is expected to happen; only what would make a test pass wrongly depends on it


class Text:
    """A page of one sample, which may be held up."""

    def __init__(self, body: bytes = b"answer 42.0\n") -> None:
        self.body = body
        self.asked: list[tuple[bool, frozenset[str]]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self._lock = threading.Lock()

    def pages(self, openmetrics: bool, names: frozenset[str] = frozenset()) -> list[bytes]:
        with self._lock:
            self.asked.append((openmetrics, names))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go_on.wait(TIMEOUT_S)
        with self._lock:
            self.at_once -= 1
        return [self.body]


@pytest.fixture
def page() -> Text:
    return Text()


@pytest.fixture
def serve(page: Text, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves `page` within limits."""
    servers: list[MetricsServer] = []

    def start(**limits: Any) -> MetricsServer:
        monkeypatch.setattr("amptalk_otel._server.LIMITS", Limits(**limits))
        servers.append(MetricsServer(page, "localhost", 0))
        return servers[-1]

    yield start
    page.go_on.set()
    for server in servers:
        assert server.close(TIMEOUT_S)


def ask(server: MetricsServer, target: str = "/metrics", method: str = "GET", *headers: str) -> Reply:
    lines = "".join(f"{header}\r\n" for header in headers)
    with connect(server.port) as client:
        client.sendall(f"{method} {target} HTTP/1.1\r\n{lines}".encode("latin-1") + CLOSE)
        reply = receive_reply(client, is_head=method == "HEAD")
        assert client.recv(1) == b""
        return reply


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def threads() -> list[str]:
    """Those of servers."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("amptalk-otel-metrics")]


# -- paths and methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "//metrics", "/metrics/../x", "/-/ready", "/%00", "/é"])
def test_other_paths_are_not_found(serve: Serve, page: Text, path: str) -> None:
    reply = ask(serve(), path.replace("é", "%C3%A9"))
    assert (reply.status, reply.body) == (404, b"Not found; the metrics are at /metrics\n")
    assert page.asked == []


@pytest.mark.parametrize(
    "target", ["/metrics?", "/metrics?a=b", "/%6detrics", "http://other/metrics", "https://other:1/metrics?x#y"]
)
def test_the_page_is_found_however_its_path_is_written(serve: Serve, target: str) -> None:
    assert ask(serve(), target).body == b"answer 42.0\n"


@pytest.mark.parametrize("target", ["metrics", "ftp://other/metrics", "http:///metrics", "http://[/metrics", "*"])
def test_a_target_that_is_no_path_is_a_bad_request(serve: Serve, target: str) -> None:
    assert ask(serve(), target).status in (400, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "X-ANY"])
def test_only_get_and_head_are_answered(serve: Serve, page: Text, method: str) -> None:
    reply = ask(serve(), "/metrics", method)
    assert (reply.status, reply.headers["allow"]) == (405, "OPTIONS,GET,HEAD")
    assert page.asked == []


def test_a_request_with_a_body_is_answered_and_ends_the_connection(serve: Serve) -> None:
    body = b"x" * 200_000
    head = f"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    (reply,) = replies(exchange(serve().port, head + body))
    assert (reply.status, reply.headers["connection"]) == (405, "close")


def test_a_body_is_never_taken_for_a_request(serve: Serve, page: Text) -> None:
    inner = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    for header in (f"Content-Length: {len(inner)}", "Transfer-Encoding: chunked"):
        request = f"GET /-/healthy HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode() + inner
        (reply,) = replies(exchange(serve().port, request))
        assert reply.body == b"Healthy.\n"
    assert page.asked == []


def test_health_is_told_without_reading_a_metric(serve: Serve, page: Text) -> None:
    server = serve()
    page.go_on.clear()
    assert (ask(server, "/-/healthy").status, ask(server, "/-/healthy").body) == (200, b"Healthy.\n")
    assert (ask(server, "/-/healthy", "HEAD").status, ask(server, "/-/healthy", "POST").status) == (200, 405)
    assert page.asked == []


def test_health_is_told_though_the_page_takes_all_threads(serve: Serve, page: Text) -> None:
    server = serve(requests=1, wait_s=0.05)
    page.go_on.clear()
    with connect(server.port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + CLOSE)
        wait_until(lambda: page.at_once == 1)
        assert ask(server).status == 503
        assert [ask(server, "/-/healthy", method).status for method in ("GET", "HEAD")] == [200, 200]
        page.go_on.set()
        assert receive_reply(client).status == 200


def test_a_client_that_asks_for_health_and_never_reads_is_dropped_and_holds_up_nobody(serve: Serve) -> None:
    server = serve()
    with connect(server.port) as client, contextlib.suppress(ConnectionError):
        for _ in range(600):
            client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    assert ask(server).status == 200
    wait_until(lambda: not server._front._connections and not server._front._answering)


def test_options_tells_what_there_is_for_the_page_and_the_whole_server(serve: Serve) -> None:
    server = serve()
    for target in ("/metrics", "*"):
        reply = ask(server, target, "OPTIONS")
        assert (reply.status, reply.headers["allow"], reply.body) == (200, "OPTIONS,GET,HEAD", b"")
    assert ask(server, "/other", "OPTIONS").status == 404


# -- names ---------------------------------------------------------------------------------------------


def test_as_many_names_may_be_asked_for_as_the_limit_says(serve: Serve, page: Text) -> None:
    server = serve(names=3)
    names = [f"n{number}" for number in range(4)]
    query = "&".join(f"name[]={name}" for name in names)
    reply = ask(server, f"/metrics?{query}")
    assert (reply.status, reply.body) == (400, b"More than 3 names are asked for\n")
    assert page.asked == []
    assert ask(server, f"/metrics?{query[: query.rindex('&')]}").status == 200
    assert page.asked == [(False, frozenset(names[:3]))]


def test_all_names_of_the_catalogue_may_be_asked_for() -> None:
    from amptalk_otel._catalogue import CATALOGUE

    assert len(CATALOGUE) * 4 < Limits().names


# -- what every answer says ----------------------------------------------------------------------------


def test_no_answer_says_what_serves_it(serve: Serve) -> None:
    server = serve()
    for reply in (ask(server), ask(server, "/x"), *replies(exchange(server.port, b"\0"))):
        assert "server" not in reply.headers
        assert "python" not in str(reply).lower()
        assert "amptalk" not in str(reply).lower()


def test_every_answer_tells_browsers_to_keep_run_and_embed_nothing(serve: Serve) -> None:
    server = serve()
    for reply in (ask(server), ask(server, "/x"), ask(server, "/-/healthy"), *replies(exchange(server.port, b"\0"))):
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "deny"
        assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert reply.headers["content-type"].startswith("text/plain")
        assert abs(parsedate_to_datetime(reply.headers["date"]).timestamp() - time.time()) < 60


# -- connections ---------------------------------------------------------------------------------------


def test_a_connection_serves_many_requests(serve: Serve) -> None:
    with connect(serve().port) as client:
        for number in range(20):
            method = ("GET", "HEAD")[number % 2]
            client.sendall(f"{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            reply = receive_reply(client, is_head=method == "HEAD")
            assert (reply.status, reply.headers["connection"]) == (200, "keep-alive")
            assert reply.headers["content-length"] == "12"
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + CLOSE)
        (reply,) = replies(until_closed(client))
        assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("version", "header", "keeps"),
    [
        ("1.1", "X: y", True),
        ("1.1", "Connection: Close", False),
        ("1.1", "Connection: x, close", False),
        ("1.0", "X: y", False),
        ("1.0", "Connection: Keep-Alive", True),
        ("1.2", "X: y", True),
    ],
)
def test_whether_a_connection_goes_on_is_as_the_version_and_the_client_say(
    serve: Serve, version: str, header: str, keeps: bool
) -> None:
    with connect(serve().port) as client:
        client.sendall(f"GET /metrics HTTP/{version}\r\nHost: a\r\n{header}\r\n\r\n".encode())
        reply = receive_reply(client)
        assert reply.headers["connection"] == ("keep-alive" if keeps else "close")
        client.settimeout(TIMEOUT_S if not keeps else NO_WAIT)
        with pytest.raises(TimeoutError) if keeps else contextlib.nullcontext():
            assert client.recv(1) == b""


def test_requests_that_come_together_are_answered_in_their_order(serve: Serve) -> None:
    targets = ["/metrics", "/a", "/-/healthy", "/metrics"]
    together = b"".join(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for target in targets)
    found = replies(exchange(serve().port, together + b"GET /metrics HTTP/1.1\r\n" + CLOSE))
    assert [reply.status for reply in found] == [200, 404, 200, 200, 200]
    assert found[2].body == b"Healthy.\n"


def test_a_client_that_has_said_all_may_close_its_half(serve: Serve) -> None:
    with connect(serve().port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        (reply,) = replies(until_closed(client))
        assert reply.status == 200


def test_a_connection_that_is_not_used_again_is_closed(serve: Serve) -> None:
    with connect(serve(idle_s=0.05).port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert receive_reply(client).status == 200
        assert client.recv(1) == b""


# -- bad requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /metrics http/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /met\x00rics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G(T /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nauthorization: y\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # the beginning of a TLS handshake
        (b"\xff", 400),
    ],
)
def test_what_is_no_request_is_told_so_at_once(serve: Serve, page: Text, request_: bytes, status: int) -> None:
    (reply,) = replies(exchange(serve().port, request_))
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert reply.body.startswith(str(status).encode())
    assert page.asked == []


def test_lines_may_end_in_line_feeds_and_empty_ones_may_come_first(serve: Serve) -> None:
    (reply,) = replies(exchange(serve().port, b"\r\n\nGET /metrics HTTP/1.1\nHost: a\nConnection: close\n\n"))
    assert reply.status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 8_192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"x" * 1_000_000, 414),
        (b"x" * 1_000_000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 16_384 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1_000_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100_000, 431),
        (b"\r\n" * 100_000, 414),
    ],
    ids=range(8),
)
def test_what_is_too_large_is_told_so_and_the_rest_not_read(
    serve: Serve, page: Text, request_: bytes, status: int
) -> None:
    with connect(serve().port) as client:
        with contextlib.suppress(ConnectionError):  # it need not take all
            client.sendall(request_)
        (reply,) = replies(until_closed(client))
    assert reply.status == status
    assert page.asked == []


def test_as_much_as_the_limits_allow_is_taken(serve: Serve) -> None:
    line = b"GET /" + b"x" * (8_192 - len("GET / HTTP/1.1")) + b" HTTP/1.1\r\n"
    headers = b"Host: a\r\nConnection: close\r\n" + b"X: y\r\n" * 98
    (reply,) = replies(exchange(serve().port, line + headers + b"\r\n"))
    assert reply.status == 404


# -- slow clients --------------------------------------------------------------------------------------


def test_a_head_has_a_time_in_which_it_must_be_complete_however_it_trickles(serve: Serve) -> None:
    server = serve(head_s=0.4)
    started = time.monotonic()
    with connect(server.port) as client:
        client.settimeout(0.02)
        received = b""
        for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 10_000:  # each within any time between two of them
            with contextlib.suppress(TimeoutError, ConnectionError):
                client.send(bytes([byte]))
                received = client.recv(1 << 16)
                break
    (reply,) = replies(received)
    assert reply.status == 408
    assert 0.4 <= time.monotonic() - started < TIMEOUT_S


def test_a_client_that_never_says_anything_is_hung_up_on(serve: Serve) -> None:
    with connect(serve(head_s=0.05).port) as client:
        assert until_closed(client) == b""


def test_a_slow_second_request_has_the_same_time(serve: Serve) -> None:
    with connect(serve(head_s=0.05).port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert receive_reply(client).status == 200
        client.sendall(b"GET")
        (reply,) = replies(until_closed(client))
        assert reply.status == 408


def test_an_empty_line_after_a_request_is_not_the_beginning_of_another(serve: Serve) -> None:
    with connect(serve(head_s=0.05, idle_s=0.5).port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n\r\n")
        assert receive_reply(client).status == 200
        assert until_closed(client) == b"", "it waits for the next one, and hangs up without a word"


def test_a_request_may_follow_on_empty_lines_at_any_time(serve: Serve) -> None:
    with connect(serve().port) as client:
        for _ in range(3):
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n\r\n\n")
            assert receive_reply(client).status == 200


def test_slow_clients_cost_no_thread_and_hold_up_nobody(serve: Serve) -> None:
    server = serve()
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(connect(server.port)).sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        assert ask(server).status == 200
        wait_until(lambda: threads() == ["amptalk-otel-metrics"])


def test_with_too_many_connections_the_one_that_waits_longest_is_closed(serve: Serve) -> None:
    server = serve(connections=5)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(5)]
        clients[0].sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert receive_reply(clients[0]).status == 200  # so it is the youngest now
        assert ask(server).status == 200
        assert clients[1].recv(1) == b""
        for client in (clients[0], *clients[2:]):
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + CLOSE)
            assert receive_reply(client).status == 200


def test_when_all_connections_are_being_answered_no_other_is_taken(serve: Serve, page: Text) -> None:
    server = serve(connections=3)
    page.go_on.clear()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(3)]
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + CLOSE)
        wait_until(lambda: page.at_once == 3)
        with contextlib.suppress(ConnectionError):
            assert exchange(server.port, b"GET /metrics HTTP/1.1\r\n" + CLOSE) == b""
        page.go_on.set()
        assert [receive_reply(client).status for client in clients] == [200, 200, 200]


def test_a_client_that_does_not_read_is_given_up_in_time(serve: Serve, page: Text) -> None:
    page.body = b"x" * 50_000_000
    server = serve(write_s=0.2)
    with connect(server.port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(1) == b"H"
        for thread in threading.enumerate():
            if thread.name == "amptalk-otel-metrics-request":
                thread.join(TIMEOUT_S)
                assert not thread.is_alive()
        with contextlib.suppress(ConnectionError):
            assert len(until_closed(client)) < len(page.body)


def test_a_client_that_does_not_hang_up_after_its_last_answer_is_hung_up_on(serve: Serve) -> None:
    server = serve(linger_s=0.05)
    with connect(server.port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + CLOSE)
        assert receive_reply(client).status == 200
        wait_until(lambda: not server._front._connections)


# -- many requests -------------------------------------------------------------------------------------


def test_no_more_requests_are_answered_at_once_than_the_limit_says(serve: Serve, page: Text) -> None:
    server = serve(requests=2, wait_s=0.1)
    page.go_on.clear()
    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(ask, server) for _ in range(6)]
        wait_until(lambda: sum(task.done() for task in tasks) == 4)
        refused = [task.result() for task in tasks if task.done()]
        page.go_on.set()
        answered = [task.result() for task in tasks]
    assert [reply.status for reply in refused] == [503] * 4
    assert {reply.headers["retry-after"] for reply in refused} == {"5"}
    assert {reply.body for reply in refused} == {b"503 Service Unavailable\n"}
    assert sorted(reply.status for reply in answered) == [200, 200, 503, 503, 503, 503]
    assert page.most_at_once == 2
    assert ask(server).status == 200


def test_a_request_that_finds_all_threads_at_work_waits_for_one(serve: Serve, page: Text) -> None:
    server = serve(requests=1, wait_s=TIMEOUT_S)
    page.go_on.clear()
    with ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(ask, server) for _ in range(5)]
        wait_until(lambda: page.at_once == 1)
        page.go_on.set()
        assert [task.result().status for task in tasks] == [200] * 5
    assert page.most_at_once == 1


def test_without_another_thread_the_answer_is_503(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("amptalk_otel._front.threading.Thread", NoThread)
        assert ask(server).status == 503
    assert ask(server).status == 200


def test_without_file_descriptors_the_server_waits_until_there_are_some(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_front, "_PAUSE_S", 0.05)
    server = serve()
    listener = server._front._listener
    failures = 3

    class Poor:
        def accept(self) -> tuple[socket.socket, Any]:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(24, "Too many open files")
            return listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    server._front._selector.unregister(listener)
    poor: Any = Poor()
    server._front._listener = poor
    server._front._selector.register(poor, 1)
    server._front._ring()
    assert ask(server).status == 200
    assert failures == 0


# -- what goes wrong inside ----------------------------------------------------------------------------


def test_a_bug_in_the_front_costs_one_connection_and_one_record(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lenient_guard: None
) -> None:
    server = serve()
    with monkeypatch.context() as patch:
        patch.setattr("amptalk_otel._connection.take_request", lambda *_: 1 / 0)
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                assert exchange(server.port, b"GET /metrics HTTP/1.1\r\n" + CLOSE) == b""
    assert ask(server).status == 200
    (message,) = caplog.messages
    assert message.startswith("serving the metrics page was skipped (ZeroDivisionError at ")


class _FatalError(BaseException):
    pass


@pytest.mark.parametrize("raised", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, _FatalError])
def test_what_ends_a_program_or_a_task_ends_no_server(
    serve: Serve,
    page: Text,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    lenient_guard: None,
    raised: type[BaseException],
) -> None:
    server = serve()

    def fail(*_: object) -> list[bytes]:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(page, "pages", fail)
        assert ask(server).status == 500
    (message,) = caplog.messages
    assert message.startswith(f"serving the metrics page was skipped ({raised.__qualname__} at ")
    assert ask(server).status == 200
    assert capfd.readouterr() == ("", "")


def test_an_answer_that_breaks_off_ends_its_connection_and_costs_no_time(
    serve: Serve, page: Text, monkeypatch: pytest.MonkeyPatch, lenient_guard: None
) -> None:
    server = serve()
    turns = 0
    turn = server._front._turn

    def counted() -> None:
        nonlocal turns
        turns += 1
        turn()

    monkeypatch.setattr(server._front, "_turn", counted)
    with monkeypatch.context() as patch:
        patch.setattr("amptalk_otel._connection.Connection.write", _cancelled)
        assert exchange(server.port, b"GET /metrics HTTP/1.1\r\n" + CLOSE) == b""
    wait_until(lambda: not server._front._connections)
    time.sleep(0.1)  # in which the thread that waits for all has nothing to do
    assert turns < 20
    assert ask(server).status == 200


def test_a_connection_that_comes_back_without_an_answer_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    with monkeypatch.context() as patch:
        patch.setattr(server._front, "_serve", server._front._return)  # a thread that does nothing
        assert exchange(server.port, b"GET /metrics HTTP/1.1\r\n" + CLOSE) == b""
    wait_until(lambda: not server._front._connections)
    assert ask(server).status == 200


def _cancelled(*_: object) -> None:
    raise asyncio.CancelledError


# -- the end -------------------------------------------------------------------------------------------


DESCRIPTORS = Path("/proc/self/fd")


def descriptors() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts file descriptors as Linux shows them")
def test_neither_threads_nor_descriptors_are_left(page: Text) -> None:
    before = descriptors()
    for _ in range(3):
        server = MetricsServer(page, "localhost", 0)
        clients = [connect(server.port) for _ in range(10)]
        for client in clients[5:]:  # whoever is answered has come in, and so have those before
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert receive_reply(client).status == 200
        assert server.close(TIMEOUT_S)
        for client in clients:
            assert client.recv(1) == b""
            client.close()
    wait_until(lambda: descriptors() <= before and threads() == [])  # what other tests left may go meanwhile


def test_what_is_being_answered_at_the_end_is_answered_and_then_closed(page: Text) -> None:
    server = MetricsServer(page, "localhost", 0)
    page.go_on.clear()
    with connect(server.port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n")
        wait_until(lambda: page.at_once == 1)
        assert server.close(TIMEOUT_S) is True
        page.go_on.set()
        (reply,) = replies(until_closed(client))
    assert gzip.decompress(reply.body) == page.body
