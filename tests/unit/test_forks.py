"""A forked child gives back what it has of its parent's, and the parent and its clients do not notice."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amptalk_otel import Config
from amptalk_otel._file_protection import FileProtection
from amptalk_otel._forks import after_fork
from amptalk_otel._pipeline import Pipeline, acquire, release
from amptalk_otel._protection import OPEN
from amptalk_otel._server import MetricsServer
from tests.certificates import Authority
from tests.faults.collectors import OK, answering, read_request
from tests.faults.trial import Strikes
from tests.unit.test_endpoint import Text
from tests.unit.test_pipeline import count
from tests.wire_http import TIMEOUT_S, connect, receive_reply

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


class Child:
    """A forked child that does one thing and then lives on until it is told to end."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._done, done = os.pipe()
        ended, self._end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this process has threads
            self._id = os.fork()
        if self._id:
            os.close(done)
            os.close(ended)
            return
        status = 1
        try:
            signal.alarm(20)
            for one in (self._done, self._end):
                os.close(one)
            act()
            os.write(done, b"1")
            os.read(ended, 1)
            status = 0
        finally:
            os._exit(status)

    def wait(self) -> None:
        """Until it has done its thing."""
        assert os.read(self._done, 1) == b"1"

    def end(self) -> int:
        os.close(self._end)
        os.close(self._done)
        return os.waitstatus_to_exitcode(os.waitpid(self._id, 0)[1])


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Callable[[MetricsServer], socket.socket]]:
    """Connects, by TLS where the server speaks it."""
    authority = Authority(tmp_path)
    authority.server()
    (tmp_path / "web.yml").write_text(TLS, encoding="utf-8")
    with contextlib.ExitStack() as opened:

        def connected(server: MetricsServer) -> socket.socket:
            client = connect(server.port)
            if server.url.startswith("https"):
                client = authority.trust().wrap_socket(client, server_hostname="localhost")
            opened.enter_context(client)
            return client

        yield connected


@pytest.mark.parametrize("uses_tls", [False, True], ids=["plain", "TLS"])
def test_clients_stay_with_the_parent_and_the_child_has_none_of_them(
    client_of: Callable[[MetricsServer], socket.socket], tmp_path: Path, *, uses_tls: bool
) -> None:
    page = Text()
    protection = FileProtection(str(tmp_path / "web.yml"), None) if uses_tls else OPEN
    server = MetricsServer(page, "localhost", 0, protection=protection)
    idle, answered, new = (client_of(server) for _ in range(3))
    idle.sendall(GET)
    assert receive_reply(idle).body == page.body
    page.go_on.clear()
    answered.sendall(GET)
    while page.at_once == 0:
        pass
    sockets = [connection.socket for connection in server._front._connections]
    assert len(sockets) == 3

    def leave() -> None:
        server.leave_to_parent()
        assert [one.fileno() for one in sockets] == [-1] * 3

    child = Child(leave)
    child.wait()
    page.go_on.set()
    assert receive_reply(answered).body == page.body  # it was being answered
    for client in (idle, answered, new):
        client.sendall(GET)
        assert receive_reply(client).body == page.body
    assert server.close(TIMEOUT_S)
    for client in (idle, answered, new):
        assert client.recv(1) == b"", "the child holds the connection"
    with socket.create_server(("127.0.0.1", server.port)):  # and not the port either
        pass
    assert child.end() == 0


def test_a_child_gives_the_port_back_by_itself() -> None:
    """Also that of a pipeline which is just ending, and in nobody's use any more."""
    pipeline = Pipeline(Config(prometheus_port=0))
    shared = acquire(Config(prometheus_port=0))
    ports = [one._server.port for one in (pipeline, shared) if one._server is not None]
    child = Child(lambda: None)
    child.wait()
    assert pipeline.shutdown(TIMEOUT_S)
    assert release(shared, TIMEOUT_S)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert len(ports) == 2
    assert child.end() == 0


def test_a_child_pushes_nothing_of_its_parents_and_ends_nothing() -> None:
    pushed: list[bytes] = []

    def take(client: socket.socket) -> None:
        while True:
            pushed.append(read_request(client)[0])
            client.sendall(OK)

    with answering(take, Strikes()) as port:
        config = Config(
            metrics_exporters=("otlp",),
            traces_exporters=("otlp",),
            otlp_endpoint=f"http://127.0.0.1:{port}",
            metric_export_interval_s=3600.0,
        )
        pipeline = acquire(config)
        assert pipeline.tracer_provider is not None
        tracer = pipeline.tracer_provider.get_tracer("test")

        def act() -> None:
            count(pipeline, 1)
            assert "OtelPeriodicExportingMetricReader" not in [thread.name for thread in threading.enumerate()]
            tracer.start_span("of the child").end()
            pipeline.flush(2.0)
            vars(pipeline)["_shutdowns"] = None  # which nobody asks for
            assert pipeline.shutdown(2.0)

        child = Child(act)
        child.wait()
        assert child.end() == 0
        assert pushed == []
        count(pipeline, 1)
        tracer.start_span("of the parent").end()
        assert release(pipeline, TIMEOUT_S)
        assert sorted(pushed) == [b"POST /v1/metrics HTTP/1.1", b"POST /v1/traces HTTP/1.1"]


def test_a_child_of_a_program_that_has_shut_down_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    config = Config(metrics_exporters=("otlp",), traces_exporters=("otlp",), otlp_endpoint="http://127.0.0.1:9")
    pipeline = acquire(config)
    release(pipeline, TIMEOUT_S)
    del pipeline
    gc.collect()
    child = Child(lambda: None)
    child.wait()
    assert child.end() == 0
    assert capfd.readouterr() == ("", "")


def test_a_child_has_locks_of_its_own() -> None:
    from amptalk_otel import _guard, _instrumentation, _pipeline, _watch
    from amptalk_otel._hooks import _state

    modules = (_guard, _instrumentation, _watch, _state)
    pipeline = Pipeline(Config(metrics_exporters=("none",)))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(module._lock)
            stack.enter_context(_pipeline._shared_lock)
            stack.enter_context(pipeline._lock)
            held.set()
            done.wait(TIMEOUT_S)

    def acquire_all() -> None:
        for lock in (*(module._lock for module in modules), _pipeline._shared_lock):
            assert lock.acquire(timeout=5)
        assert pipeline._lock.acquire(timeout=5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(TIMEOUT_S)
    child = Child(acquire_all)
    child.wait()
    done.set()
    thread.join(TIMEOUT_S)
    assert child.end() == 0
    assert pipeline.shutdown(TIMEOUT_S)


def test_where_there_are_no_forks_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    after_fork(lambda: None)
